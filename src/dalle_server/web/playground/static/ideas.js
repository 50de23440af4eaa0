// Prompts to begin with: what each model draws well.

const NANO = [
  "a red apple",
  "three rockets in space",
  "a cat to the left of a dog on a blue background",
  "a 3d slice of pizza",
  "two yellow flowers on a green background",
  "a flat blue whale in the ocean",
  "a penguin in the snow",
  "a purple heart",
];
const DALLE = [
  "an armchair in the shape of an avocado",
  "a watercolor painting of a fox in the snow",
  "sunset over a lake in the mountains",
  "the Eiffel tower landing on the moon",
  "a stained glass window of a strawberry",
  "a cozy cabin in a forest, pencil sketch",
];

export const ideasFor = (modelName) => (modelName.startsWith("nano") ? NANO : DALLE).slice(0, 6);
