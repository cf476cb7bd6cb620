"""The parts under test here are the tests' own rigs."""

from tests.support.shared_s3 import s3_server

__all__ = ["s3_server"]
