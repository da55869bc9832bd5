"""Prints the OpenAPI document: `python -m gateway.document`."""

import sys

from gateway.app import routed_app
from gateway.openapi import render

if __name__ == "__main__":
    sys.stdout.buffer.write(render(routed_app()))
