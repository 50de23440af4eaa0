// The same picture from a program.

import { base } from "../api.js";
import { toJSON } from "../seeds.js";

// Whatever an address, a prompt or a strange server's answer holds stays text: a quoted word of a shell, a string of Python.
const python = (value) => ({ number: String(value), boolean: value ? "True" : "False" })[typeof value] ?? JSON.stringify(value);
const digits = (seed) => (/^[0-9]+$/.test(seed) ? seed : python(seed));
const literal = (name, value) => (name === "seed" ? digits(value) : python(value));
const suffix = (job) => (/^[a-z]+$/.test(job.format) ? job.format : "png");
const single = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const word = (text) => (/^[\w:/.~%=-]+$/.test(text) ? text : single(text));
const address = (url) => `${base}${String(url).replace(/^\//, "")}`;
const KEY = "API_KEY"; // not a name that begins with DALLE_: the server reads those as its settings

function settings(job) {
  const { model, prompt, num_images, format, size } = job;
  return { model, prompt, num_images, format, ...(size ? { size } : {}), ...ours(job) };
}

/** Fields that OpenAI's images API does not have. */
function ours(job) {
  const { best_of, seed, temperature, top_k, top_p, condition_scale, negative_prompt, fit, seamless } = job;
  return {
    ...(Number.isInteger(best_of) ? { best_of } : {}), seed, temperature, top_k, top_p, condition_scale,
    ...(negative_prompt ? { negative_prompt } : {}), ...(fit ? { fit } : {}), ...manner(job), ...(seamless === true ? { seamless } : {}),
  };
}

/** How a given picture is drawn over. */
function manner({ over }) {
  if (!over) return {};
  const { strength, candidates, keep_tokens } = over;
  return { strength, candidates, ...(keep_tokens ? { keep_tokens } : {}) };
}

/** The files that were given, and where they are kept: [["image", address], ["mask", address]]. */
function given({ over }) {
  return [["image", over?.image_url], ["mask", over?.mask_url]].filter(([, url]) => url).map(([name, url]) => [name, address(url)]);
}

export function snippet(language, job, withKey) {
  return { curl, python: requests, openai }[language](job, withKey);
}

function curl(job, withKey) {
  const header = withKey ? `  -H "Authorization: Bearer $${KEY}" \\\n` : "";
  const start = `curl ${word(`${base}v1/jobs`)} \\\n${header}`;
  if (!job.over) return `${start}  --json ${single(toJSON(settings(job), 2))}`;
  const fetched = given(job).map(([name, url]) => `curl -o ${name}.png ${word(url)}${withKey ? ` \\\n${header.slice(0, -3)}` : ""}`);
  const files = given(job).map(([name]) => `  -F ${name}=@${name}.png`);
  const fields = Object.entries(settings(job)).map(([name, value]) => `  --form-string ${word(`${name}=${value}`)}`);
  return [...fetched, start + [...files, ...fields].join(" \\\n")].join("\n");
}

function requests(job, withKey) {
  const lines = Object.entries(settings(job)).map(([name, value]) => `    "${name}": ${literal(name, value)},`);
  const header = withKey ? `server.headers["Authorization"] = f"Bearer {os.environ['${KEY}']}"\n` : "";
  const files = given(job).map(([name, url]) => `    "${name}": server.get(${python(url)}).content,`);
  const body = job.over ? `files={\n${files.join("\n")}\n}, data={` : "json={";
  return `${withKey ? "import os\n" : ""}import time

import requests

server = requests.Session()
${header}base = ${python(base.slice(0, -1))}
job = server.post(f"{base}/v1/jobs", ${body}
${lines.join("\n")}
}).json()
while job["status"] in ("queued", "running"):
    time.sleep(0.5)
    job = server.get(f"{base}/v1/jobs/{job['id']}").json()
for image in job["images"]:
    with open(f"{image['seed']}-{image['index']}.${suffix(job)}", "wb") as file:
        file.write(server.get(base + image["url"]).content)
`;
}

/** Its edits need a prompt; its variations take none, no mask, and no format of their own. */
function openai(job, withKey) {
  const { over, prompt, format } = job;
  if (over?.mask_url && !prompt) return "# OpenAI's API paints a part of a picture only with a prompt, and this one had none.\n# The Python program draws it.\n";
  const call = !over ? "generate" : prompt ? "edit" : "create_variation";
  const extra = Object.entries({ ...(prompt ? {} : { output_format: format }), ...ours(job) }).map(([name, value]) => `"${name}": ${literal(name, value)}`);
  const words = prompt ? `    prompt=${python(prompt)},\n` : "";
  const output = prompt ? `    output_format=${python(format)},\n` : "";
  const size = job.size ? `    size=${python(job.size)},\n` : "";
  const header = withKey ? `, headers={"Authorization": f"Bearer {os.environ['${KEY}']}"}` : "";
  const files = given(job).map(([name, url]) => `    ${name}=requests.get(${python(url)}${header}).content,\n`);
  return `import base64
${withKey ? "import os\n" : ""}
${over ? "import requests\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${python(`${base}v1`)}, api_key=${withKey ? 'os.environ["API_KEY"]' : '"none"'})
reply = client.images.${call}(
    model=${python(job.model)},
${words}${files.join("")}${size}    n=${Math.min(Number(job.num_images), 10)},
    response_format="b64_json",
${output}    extra_body={${extra.join(", ")}},
)
for index, image in enumerate(reply.data):
    with open(f"${/^[0-9]+$/.test(job.seed) ? job.seed : 0}-{index}.${suffix(job)}", "wb") as file:
        file.write(base64.b64decode(image.b64_json))
`;
}
