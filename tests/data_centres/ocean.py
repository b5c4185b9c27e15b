"""Carries packets between the tun devices of two network namespaces, late and not all of them.

usage: ocean.py NAMESPACE NAMESPACE DEVICE DELAY_MS LOSS_PERCENT

For kernels without netem. Ends with its standard input.
"""

import ctypes, fcntl, heapq, os, random, select, struct, sys, time

TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def device(namespace, name):
    with open("/run/netns/" + namespace) as entrance:
        if libc.setns(entrance.fileno(), CLONE_NEWNET) != 0:
            sys.exit("setns: " + os.strerror(ctypes.get_errno()))
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def main():
    one, other = (device(namespace, sys.argv[3]) for namespace in sys.argv[1:3])
    delay, loss = float(sys.argv[4]) / 1000, float(sys.argv[5]) / 100
    print("ready", flush=True)
    way, queue, number = {one: other, other: one}, [], 0
    while True:
        wait = max(0, queue[0][0] - time.monotonic()) if queue else None
        for source in select.select([one, other, sys.stdin], [], [], wait)[0]:
            if source is sys.stdin:
                return
            try:
                packet = os.read(source, 65536)
            except OSError:
                continue
            if random.random() >= loss:
                number += 1
                heapq.heappush(queue, (time.monotonic() + delay, number, way[source], packet))
        while queue and queue[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(queue)
            try:
                os.write(target, packet)
            except OSError:
                pass  # the device is down, or its queue is full: lost, as on any line


main()
