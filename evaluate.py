"""Score the base and the adapted model side by side: sam2-mope evaluate."""

from src.cli.main import main

if __name__ == "__main__":
    main("evaluate")
