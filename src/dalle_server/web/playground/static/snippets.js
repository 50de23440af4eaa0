// The same picture from a program.

import { base } from "./api.js";

const python = (value) => (typeof value === "number" ? String(value) : JSON.stringify(value));
const single = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function settings(job) {
  const { prompt, num_images, seed, temperature, top_k, top_p, condition_scale } = job;
  const all = { prompt, num_images, seed, temperature, top_k, top_p, condition_scale, format: job.format };
  return job.negative_prompt ? { ...all, negative_prompt: job.negative_prompt } : all;
}

export function snippet(language, job, withKey) {
  return { curl, python: requests, openai }[language](job, withKey);
}

function curl(job, withKey) {
  const header = withKey ? `  -H "Authorization: Bearer $DALLE_API_KEY" \\\n` : "";
  return `curl ${base}v1/jobs \\\n${header}  --json ${single(JSON.stringify(settings(job), null, 2))}`;
}

function requests(job, withKey) {
  const lines = Object.entries(settings(job)).map(([name, value]) => `    ${JSON.stringify(name)}: ${python(value)},`);
  const header = withKey ? `server.headers["Authorization"] = f"Bearer {os.environ['DALLE_API_KEY']}"\n` : "";
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
    with open(f"{image['seed']}-{image['index']}.${job.format}", "wb") as file:
        file.write(server.get(base + image["url"]).content)
`;
}

function openai(job, withKey) {
  const { seed, temperature, top_k, top_p, condition_scale } = job;
  const extra = Object.entries({ seed, temperature, top_k, top_p, condition_scale }).map(([name, value]) => `"${name}": ${value}`);
  return `import base64
${withKey ? "import os\n" : ""}
from openai import OpenAI

client = OpenAI(base_url="${base}v1", api_key=${withKey ? 'os.environ["DALLE_API_KEY"]' : '"none"'})
reply = client.images.generate(
    model=${python(job.model)},
    prompt=${python(job.prompt)},
    n=${Math.min(job.num_images, 10)},
    response_format="b64_json",
    output_format="${job.format}",
    extra_body={${extra.join(", ")}},
)
for index, image in enumerate(reply.data):
    with open(f"${seed}-{index}.${job.format}", "wb") as file:
        file.write(base64.b64decode(image.b64_json))
`;
}
