import pytest
from click.testing import CliRunner

from hscc_search.cli import commands


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, True), (0o600, False)])
def test_a_token_that_other_users_may_read_is_told(tmp_path, mode, warned):
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length")
    token.chmod(mode)
    arguments = ["dashboard", "--storage", f"sqlite:///{tmp_path}/nothing.db", "--token-file", str(token)]
    done = CliRunner().invoke(commands, arguments)
    assert "no studies in" in str(done.exception)
    assert ("other users of this machine may read" in done.output) == warned
    assert "a-token-of-some-length" not in done.output
