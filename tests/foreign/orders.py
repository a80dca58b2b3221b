"""A client of another language, which knows NATS and nothing of Pelton: it publishes an order's life as plain JSON
with no headers, and reads the order back through the key-value API. Prints the order when it is completed."""

import asyncio
import json
import sys
import time

import nats


async def main(url, order):
    client = await nats.connect(url)
    jetstream = client.jetstream()
    steps = {
        "created": {"total_price": "19.90"},
        "paid": {"payment_id": f"p-{order}", "payment_status": "success"},
        "shipped": {"shipping_id": f"s-{order}", "shipping_status": "sent"},
        "completed": {"delivery_id": f"d-{order}", "delivery_status": "delivered"},
    }
    for step, data in steps.items():
        body = {"order_id": order, "customer_id": "c-1", **data}
        await jetstream.publish(f"orders.{order}.{step}", json.dumps(body).encode())

    bucket = await jetstream.key_value("shop")
    deadline = time.monotonic() + 45
    seen = None
    while time.monotonic() < deadline:
        try:
            entry = await bucket.get(f"orders.{order}")
            seen = json.loads(entry.value)
            if seen["status"] == "completed":
                print(json.dumps(seen))
                await client.close()
                return 0
        except nats.js.errors.KeyNotFoundError:
            pass
        await asyncio.sleep(0.05)
    print(f"order {order} was not completed in time; last seen: {seen}", file=sys.stderr)
    return 1


sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2])))
