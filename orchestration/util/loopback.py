"""This machine's own servers are reached directly, whatever proxy is set for the rest of the world."""

from collections.abc import MutableMapping

_HERE = ("localhost", "127.0.0.1", "::1")


def bypass_proxies(environment: MutableMapping[str, str]) -> None:
    """Add loopback to the addresses that need no proxy, where one is set; child processes inherit it."""
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy") for name in environment):
        return
    said = [one.strip() for name in ("no_proxy", "NO_PROXY") for one in environment.get(name, "").split(",")]
    if "*" in said:  # no address needs one; beside others the star would be a name
        return
    listed = ",".join(dict.fromkeys([*filter(None, said), *_HERE]))
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = listed
