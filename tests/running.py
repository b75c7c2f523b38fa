"""Commands as a test calls them: in its own process, with what they print."""

from mask_impact.commands.main import main


def compare(capsys, *words, page=False):
    """`mask-impact compare`: (exit code, stdout, stderr); without the page, which takes a moment, where it is not asked for."""
    code = main(["compare", *map(str, words), *([] if page else ["--no-page"])])
    printed = capsys.readouterr()
    return code, printed.out, printed.err
