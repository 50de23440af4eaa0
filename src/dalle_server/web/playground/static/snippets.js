// The same picture from a program.

import { base } from "./api.js";
import { toJSON } from "./seeds.js";

// Whatever an address, a prompt or a strange server's answer holds stays text: a quoted word of a shell, a string of Python.
const python = (value) => (typeof value === "number" ? String(value) : JSON.stringify(value));
const digits = (seed) => (/^[0-9]+$/.test(seed) ? seed : python(seed));
const suffix = (job) => (/^[a-z]+$/.test(job.format) ? job.format : "png");
const single = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const word = (text) => (/^[\w:/.~%-]+$/.test(text) ? text : single(text));
const KEY = "API_KEY"; // not a name that begins with DALLE_: the server reads those as its settings

function settings(job) {
  const { prompt, num_images, seed, temperature, top_k, top_p, condition_scale } = job;
  const all = { prompt, num_images, seed, temperature, top_k, top_p, condition_scale, format: job.format };
  return job.negative_prompt ? { ...all, negative_prompt: job.negative_prompt } : all;
}

export function snippet(language, job, withKey) {
  return { curl, python: requests, openai }[language](job, withKey);
}

function curl(job, withKey) {
  const header = withKey ? `  -H "Authorization: Bearer $${KEY}" \\\n` : "";
  return `curl ${word(`${base}v1/jobs`)} \\\n${header}  --json ${single(toJSON(settings(job), 2))}`;
}

function requests(job, withKey) {
  const lines = Object.entries(settings(job)).map(([name, value]) => `    "${name}": ${name === "seed" ? digits(value) : python(value)},`);
  const header = withKey ? `server.headers["Authorization"] = f"Bearer {os.environ['${KEY}']}"\n` : "";
  return `${withKey ? "import os\n" : ""}import time

import requests

server = requests.Session()
${header}base = ${python(base.slice(0, -1))}
job = server.post(f"{base}/v1/jobs", json={
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

function openai(job, withKey) {
  const { seed, temperature, top_k, top_p, condition_scale } = job;
  const extra = Object.entries({ seed, temperature, top_k, top_p, condition_scale }).map(([name, value]) => `"${name}": ${name === "seed" ? digits(value) : python(value)}`);
  return `import base64
${withKey ? "import os\n" : ""}
from openai import OpenAI

client = OpenAI(base_url=${python(`${base}v1`)}, api_key=${withKey ? 'os.environ["API_KEY"]' : '"none"'})
reply = client.images.generate(
    model=${python(job.model)},
    prompt=${python(job.prompt)},
    n=${Math.min(Number(job.num_images), 10)},
    response_format="b64_json",
    output_format=${python(job.format)},
    extra_body={${extra.join(", ")}},
)
for index, image in enumerate(reply.data):
    with open(f"${/^[0-9]+$/.test(seed) ? seed : 0}-{index}.${suffix(job)}", "wb") as file:
        file.write(base64.b64decode(image.b64_json))
`;
}
