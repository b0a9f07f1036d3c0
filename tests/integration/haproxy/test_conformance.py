"""The adapter is one, by efm-lb's own definition, on a real HAProxy."""

from __future__ import annotations

import socket

import pytest

from efm_lb.testing import AdapterConformance
from efm_lb_haproxy import adapter as haproxy_adapter


class TestHaproxy(AdapterConformance):
    @pytest.fixture
    def adapter(self):
        return haproxy_adapter

    @pytest.fixture
    def balancer(self, manager):
        return manager.balancer

    @pytest.fixture
    def truth(self, manager):
        return manager.truth()

    @pytest.fixture
    def unreachable(self, balancer):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        return balancer._replace(settings={**balancer.settings, "socket": f"127.0.0.1:{port}"})

    @pytest.fixture
    def silent(self, balancer):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            yield balancer._replace(settings={**balancer.settings, "socket": f"127.0.0.1:{port}"})
