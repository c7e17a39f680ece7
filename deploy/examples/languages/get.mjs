// Prints a secret: node get.mjs NAME
import http from "node:http";

const getSecret = (name) =>
  new Promise((resolve, reject) => {
    const request = {
      socketPath: process.env.LATCHKEY_SOCKET || "/run/latchkey/agent.sock",
      path: `/v1/secrets/${name}`,
      signal: AbortSignal.timeout(15_000),
    };
    const read = async (answer) => {
      let text = "";
      for await (const part of answer.setEncoding("utf8")) text += part;
      if (answer.statusCode !== 200) throw new Error(`${answer.statusCode} ${text}`);
      return JSON.parse(text).value;
    };
    http.get(request, (answer) => resolve(read(answer))).on("error", reject);
  });

console.log(await getSecret(process.argv[2]));
