"""Talks to the chat through the sidecar of its own host.

    python3 client.py 127.0.0.1:15001 chat.mesh
"""

import asyncio
import sys

import websockets


async def main(sidecar, name):
    host, port = sidecar.rsplit(":", 1)
    # The name says which service is meant; the connection goes to the sidecar.
    async with websockets.connect(f"ws://{name}/", host=host, port=int(port)) as socket:
        await socket.send("hello")
        print(await socket.recv())
        await socket.send(b"\x00bytes")
        print(await socket.recv())
        large = "x" * 500_000
        await socket.send(large)
        print(len(await socket.recv()))
        answered = await socket.ping()
        await answered
        print("pong")
    print("closed", socket.close_code)


asyncio.run(main(*sys.argv[1:]))
