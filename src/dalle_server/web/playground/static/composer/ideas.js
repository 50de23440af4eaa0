// Prompts to begin with: what each model draws well.

const NANO = [
  "a red apple",
  "a unicorn",
  "five hearts",
  "a frog",
  "a robot",
  "a green dinosaur",
  "three cupcakes",
  "a penguin in the snow",
];
const DALLE = [
  "an armchair in the shape of an avocado",
  "a watercolor painting of a fox in the snow",
  "sunset over a lake in the mountains",
  "the Eiffel tower landing on the moon",
  "a stained glass window of a strawberry",
  "a cozy cabin in a forest, pencil sketch",
];

export const ideasFor = (modelName) => (modelName.startsWith("nano") ? NANO : DALLE);
