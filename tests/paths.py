"""Where the repository and the tests' files are."""

from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
FIXTURES = TESTS / "fixtures"
SHARED = REPOSITORY.parent / "shared"
