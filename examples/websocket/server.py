"""A chat that says everything back in capitals. Says on which port it listens.

    pip install websockets
    python3 server.py
    starling register chat --port PORT
"""

import asyncio

import websockets


async def shout(socket):
    async for message in socket:
        await socket.send(message.upper())


async def main():
    async with websockets.serve(shout, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"listening on port {port}", flush=True)
        await asyncio.Future()


asyncio.run(main())
