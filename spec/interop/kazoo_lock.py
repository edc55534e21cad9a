"""kazoo's Lock recipe for specs: kazoo_lock.py HOST:PORT PATH SECONDS (of its session) [IDENTIFIER]

Says "held" when it holds, lets go when its input ends, and says "released".
"""
import sys

from kazoo.client import KazooClient

hosts, path, seconds = sys.argv[1:4]
client = KazooClient(hosts=hosts, timeout=float(seconds))
client.start()
lock = client.Lock(path, *sys.argv[4:])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
lock.release()
client.stop()
print("released", flush=True)
