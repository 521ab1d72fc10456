"""Fine-tune a model as a YAML says, then print what was gained and what was forgotten: sam2-mope train."""

from src.cli.main import main

if __name__ == "__main__":
    main("train")
