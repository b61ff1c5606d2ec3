"""oslo.privsep: an empty call to its privileged daemon, and a bind by it."""

import logging

from oslo_config import cfg
from oslo_privsep import priv_context

import measure
import privsep_calls


def calls(count):
    for _ in range(count):
        privsep_calls.nothing()


def binds(count):
    for _ in range(count):
        privsep_calls.bind(25)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    cfg.CONF([], project="alternatives")
    measure.bring_up_loopback()
    privsep_calls.context.start(priv_context.Method.FORK)
    measure.measure("oslo.privsep call", 1000, calls)
    measure.measure("oslo.privsep bind", 1000, binds)
    privsep_calls.context.stop()
