"""`python -m engine`, which does what `tessera` does."""

from tessera_fl import main

if __name__ == "__main__":
    main()
