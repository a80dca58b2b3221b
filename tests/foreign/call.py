"""A client of another language, which knows the NATS micro service protocol and nothing of Pelton: it finds a function among
the services, calls it where that says, and prints what it found, the reply and the error of a call that is refused."""

import asyncio
import json
import sys

import nats


async def main(url, service, subject, body, rejected):
    client = await nats.connect(url)
    info = json.loads((await client.request(f"$SRV.INFO.{service}", timeout=5)).data)
    endpoint = info["endpoints"][0]["subject"]
    reply = await client.request(
        endpoint, body.encode(), timeout=20, headers={"Pelton-Subject": subject}
    )
    refused = await client.request(
        endpoint, rejected.encode(), timeout=20, headers={"Pelton-Subject": subject}
    )
    stats = json.loads((await client.request(f"$SRV.STATS.{service}", timeout=5)).data)
    print(
        json.dumps(
            {
                "info": info,
                "reply": reply.data.decode(),
                "headers": reply.headers,
                "refused": refused.headers,
                "stats": stats["endpoints"][0],
            }
        )
    )
    await client.close()


asyncio.run(main(*sys.argv[1:]))
