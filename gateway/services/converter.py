"""A process of its own that makes something else of a notebook: `python -m gateway.services.converter FORMAT TITLE`.

nbconvert keeps a processor busy for as long as the notebook is long, and would keep the gateway waiting. The notebook
comes in on stdin; on stdout goes a line with the ending of the file's name, then the file.
"""

import sys
import warnings

import nbformat
from nbconvert.exporters.base import get_exporter
from traitlets.config import Config


def main() -> None:
    warnings.simplefilter("ignore")
    format_, title = sys.argv[1:]
    config = Config(ExtractOutputPreprocessor={"enabled": False})  # it puts images into files of their own
    notebook = nbformat.from_dict(nbformat.reader.reads(sys.stdin.buffer.read().decode()))
    text, resources = get_exporter(format_)(config=config).from_notebook_node(
        notebook, resources={"metadata": {"name": title}}
    )
    sys.stdout.buffer.write(f"{resources['output_extension']}\n{text}".encode())


if __name__ == "__main__":
    main()
