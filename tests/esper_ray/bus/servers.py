"""The Redis server of the tests, and where they are skipped for want of one."""

import pytest

from benchmarks.redis_server import REDIS_SERVER, Server

__all__ = ["Server", "needs_redis"]

needs_redis = pytest.mark.skipif(REDIS_SERVER is None, reason="redis-server is not installed (Debian: redis-server)")
