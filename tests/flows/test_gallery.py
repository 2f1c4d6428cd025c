import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from flows.search.gallery import Card, Page, render


def picture(colour: Any = "red", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    buffer = BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def a_card(text: str = "a red apple", *, score: float = 0.5, **more: Any) -> Card:
    given = {"key": "apple.png", "source": "fruit", "uri": None, "image": picture()} | more
    return Card(text=text, score=score, **given)


def a_page(*cards: Card, **more: Any) -> Page:
    given: dict[str, Any] = {"query_text": "an apple", "query_image": None, "find": "images"} | more
    return Page(**{"model": "starter", "gallery_size": 1234} | given, cards=cards)


class Seen(HTMLParser):
    """What a browser would make of a page: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def shown(source: str | None) -> Image.Image:
    """The picture that a data: URI holds."""
    assert source
    head, _, body = source.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(body)))


def test_a_page_tells_the_query_the_model_and_how_many_of_how_many():
    page = a_page(a_card(), a_card(), query_text="an apple")

    seen = Seen(render(page))

    assert "Images closest to an apple 2 images of 1,234 searched, with the model starter" in seen.text
    assert "<title>an apple</title>" in render(page)


def test_a_single_text_is_not_called_texts():
    page = a_page(a_card(), find="texts")

    assert "1 text of 1,234 searched" in Seen(render(page)).text


def test_a_card_shows_rank_score_text_key_and_source():
    page = a_page(a_card("first", score=0.31249), a_card("second", score=0.2, key="b.png", source="shop"))

    assert "first 1 0.312 apple.png · fruit second 2 0.200 b.png · shop" in Seen(render(page)).text


def test_bars_are_relative_to_the_best_hit_and_never_negative():
    page = a_page(a_card(score=0.3), a_card(score=0.15), a_card(score=-0.2))

    bars = [bar["style"] for bar in Seen(render(page)).all("i")]

    assert bars == ["width: 100.0%", "width: 50.0%", "width: 0.0%"]


def test_bars_are_empty_where_even_the_best_hit_points_away():
    page = a_page(a_card(score=-0.1), a_card(score=-0.2))

    bars = [bar["style"] for bar in Seen(render(page)).all("i")]

    assert bars == ["width: 0.0%", "width: 0.0%"]


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        pytest.param((40, 30), (40, 30), id="a small one as it is"),
        pytest.param((960, 480), (480, 240), id="a wide one"),
        pytest.param((1500, 3000), (240, 480), id="a tall one"),
    ],
)
def test_a_picture_stands_in_the_page_as_a_thumbnail_that_its_text_describes(
    size: tuple[int, int], fitted: tuple[int, int]
):
    page = a_page(a_card("a red apple", image=picture("red", size)))

    [image] = Seen(render(page)).all("img")

    assert image["alt"] == "a red apple"
    assert shown(image["src"]).size == fitted
    assert (image["width"], image["height"]) == (str(fitted[0]), str(fitted[1]))
    assert shown(image["src"]).getpixel((9, 9)) == pytest.approx((255, 0, 0), abs=4)


def test_a_transparent_picture_lies_on_white():
    page = a_page(a_card(image=picture((0, 0, 0, 0), mode="RGBA")))

    [image] = Seen(render(page)).all("img")

    assert shown(image["src"]).getpixel((9, 9)) == (255, 255, 255)


@pytest.mark.parametrize("stored", [None, b"\xff\xd8\xffbroken", b""])
def test_a_card_without_a_picture_shows_its_text_large_and_once(stored: bytes | None):
    seen = Seen(render(a_page(a_card("the kingfisher dives", image=stored))))

    assert seen.all("img") == []
    assert seen.text.count("the kingfisher dives") == 1
    assert "words" in [tag.get("class") for tag in seen.all("div")]
    assert ("image cannot be shown" in seen.text) == (stored is not None)


def test_an_item_without_a_text_is_told_by_its_key():
    page = a_page(a_card("", key="apple.png"), a_card("", key="pear.png", image=None))

    seen = Seen(render(page))

    assert seen.all("img")[0]["alt"] == "apple.png"
    assert seen.text.count("pear.png") == 2


def test_a_query_by_picture_shows_the_picture():
    page = a_page(query_text=None, query_image=picture("blue"), find="texts")

    seen = Seen(render(page))

    [image] = seen.all("img")
    assert shown(image["src"]).getpixel((9, 9)) == pytest.approx((0, 0, 255), abs=4)
    assert "Texts closest to this image" in seen.text
    assert "<title>Texts closest to an image</title>" in render(page)


def test_a_query_picture_that_cannot_be_decoded_is_no_reason_to_fail():
    page = a_page(a_card(), query_text=None, query_image=b"broken")

    assert "an image that cannot be shown" in Seen(render(page)).text


@pytest.mark.parametrize(
    ("size", "part"),
    [
        pytest.param(1234, "None of the 1,234 items searched has an image", id="nothing fits"),
        pytest.param(0, "No items have been ingested. Ingest a folder", id="nothing there"),
    ],
)
def test_a_page_without_hits_says_what_to_do(size: int, part: str):
    seen = Seen(render(a_page(gallery_size=size)))

    assert part in seen.text
    assert seen.all("li") == []


EVIL = """<script>alert(1)</script>"' onload='alert(2)' <img src=https://evil.test/x>"""


def test_nothing_that_a_stranger_wrote_becomes_markup():
    card = a_card(EVIL, key=EVIL, source=EVIL, uri="https://a.test/" + EVIL)
    page = a_page(card, a_card(EVIL, image=None), query_text=EVIL, query_image=picture(), model=EVIL)

    seen = Seen(render(page))

    assert seen.all("script") == []
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert {image["src"] and image["src"][:11] for image in seen.all("img")} == {"data:image/"}
    assert EVIL in seen.text


@pytest.mark.parametrize(
    "uri", ["javascript:alert(1)", "data:text/html,x", "/data/apple.png", " https://a.test", None]
)
def test_only_a_web_address_can_be_clicked(uri: str | None):
    assert Seen(render(a_page(a_card(uri=uri)))).all("a") == []


def test_a_web_address_can_be_clicked_without_telling_where_from():
    [link] = Seen(render(a_page(a_card(uri="https://a.test/x.png")))).all("a")

    assert (link["href"], link["rel"]) == ("https://a.test/x.png", "noopener noreferrer")


def test_a_page_asks_no_server_and_forbids_itself_to():
    html = render(a_page(a_card(), query_image=picture()))

    assert re.findall(r"https?:|//|url\(|@import|<script|<link", re.sub(r"base64,[^\"]+", "", html)) == []
    [policy] = [meta["content"] for meta in Seen(html).all("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_texts_of_any_script_find_their_own_direction():
    page = a_page(a_card("طائر صغير"), a_card("ציפור קטנה", image=None), query_text="عصفور")

    seen = Seen(render(page))

    for tag, kind in (("h1", None), ("p", "caption clamp"), ("p", "clamp")):
        [found] = [attributes for attributes in seen.all(tag) if attributes.get("class") == kind]
        assert (found["dir"], found["lang"]) == ("auto", "")
    assert seen.all("html") == [{"lang": "en"}]


def luminance(colour: str) -> float:
    """As WCAG 2 defines it, for `#rgb` or `#rrggbb`."""
    digits = colour.lstrip("#")
    pairs = [digit * 2 for digit in digits] if len(digits) == 3 else re.findall("..", digits)
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(pair, 16) / 255 for pair in pairs)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_every_text_colour_has_the_contrast_that_wcag_asks_for(theme: int):
    schemes = re.findall(r":root \{(.*?)\}", render(a_page()), re.DOTALL)
    colours = {}
    for scheme in (schemes[0], schemes[theme]):
        colours |= dict(re.findall(r"--(\w+): (#\w+)", scheme))

    for text in ("ink", "soft", "accent"):
        for ground in ("page", "card", "tint"):
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_what_was_searched_among_is_pictures_or_texts():
    with pytest.raises(KeyError, match="sounds"):
        render(a_page(find="sounds"))
