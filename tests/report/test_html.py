"""HTML by functions: nothing that a user gives becomes markup."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from bridle.report.html import Html, element, facts, figure, join, section, table

EVIL = "<script>alert('x')</script>\"&"


class Reader(HTMLParser):
    """Tags with their attributes, and the text, as a browser reads them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@given(st.text(st.characters(blacklist_characters="\r\0", blacklist_categories=["Cs"]), min_size=1))
def test_text_and_attributes_come_back_as_they_were(text):
    read = Reader(element("p", text, title=text))
    assert read.tags == [("p", {"title": text})]
    assert read.text == text


def test_no_text_of_a_user_is_markup():
    parts = [
        table([EVIL, EVIL], [(EVIL, EVIL)], label=EVIL),
        facts([(EVIL, EVIL)]),
        figure(EVIL, Html("<svg></svg>"), EVIL),
        section("name", EVIL, EVIL, EVIL).html,
        join([EVIL, EVIL], EVIL),
    ]
    for part in parts:
        read = Reader(part)
        assert "script" not in {tag for tag, _ in read.tags}
        assert EVIL in read.text


def test_odd_file_names_do_not_break_the_page():
    assert element("p", "a\udcffb").encode() == b"<p>a?b</p>"
    assert element("p", title="a\udcffb").encode() == b'<p title="a?b"></p>'


def test_attributes():
    made = element("use", href="#a", class_="b", stroke_width=1.5, hidden=True, title=None, disabled=False)
    assert made == '<use href="#a" class="b" stroke-width="1.5" hidden/>'
    assert element("p", element("b", "<"), "<") == "<p><b>&lt;</b>&lt;</p>"
