"""What the coding model is asked."""

from __future__ import annotations

import pytest

from gpugate.generation.code_assist import SYSTEM, CodeAssist, CodeQuestion


def user_message(question: CodeQuestion) -> str:
    return CodeAssist("coder").chat(question)["messages"][1]["content"]  # type: ignore[index,no-any-return]


def test_system_prompt_in_front():
    """Before the user's words, and replaceable."""
    body = CodeAssist("coder").chat(CodeQuestion("why?", "x = 1", "python"))
    assert ("coder", True) == (body["model"], body["stream"])
    assert {"role": "system", "content": SYSTEM} == body["messages"][0]  # type: ignore[index]
    mine = CodeAssist("coder", "Be brief.").chat(CodeQuestion("why?"))
    assert "Be brief." == mine["messages"][0]["content"]  # type: ignore[index]


def test_set_off_from_each_other():
    """Language, code between fences, question."""
    message = user_message(CodeQuestion("why?", "x = 1", "Python"))
    assert "Language: Python\n\nCode:\n```python\nx = 1\n```\n\nQuestion:\nwhy?" == message


def test_question_alone():
    """Without code and language."""
    assert "Question:\nwhy?" == user_message(CodeQuestion("why?"))


@pytest.mark.parametrize(("code", "fence"), [("```\nend\n```", "````"), ("`````", "``````"), ("``", "```")])
def test_code_with_fences_of_its_own(code, fence):
    """Cannot end its own block."""
    assert f"Code:\n{fence}\n{code}\n{fence}\n\n" in user_message(CodeQuestion("why?", code))


def test_model_by_request():
    """Wins over the configured one."""
    assert "other" == CodeAssist("coder").chat(CodeQuestion("why?", model="other"))["model"]
