"""Reports in a real Chromium: Debian's `chromium` and `chromium-driver`, which `make test` installs."""

import os
import shutil
import time
from itertools import pairwise

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from splitter import reporting

PHONE, DESKTOP = (390, 844), (1280, 900)
# Before the page's own script: keeps what it makes, so that a test can ask what is heard.
WATCH = """
window.heard = {gains: [], starts: 0, stops: 0, contexts: []};
const Context = window.AudioContext;
window.AudioContext = class extends Context {
  constructor(...given) {
    super(...given);
    heard.contexts.push(this);
    heard.analyser = this.createAnalyser();
    heard.analyser.fftSize = 8192;
  }
};
const createGain = Context.prototype.createGain;
const connect = AudioNode.prototype.connect;
BaseAudioContext.prototype.createGain = function () {
  const node = createGain.call(this);
  heard.gains.push(node);
  return node;
};
AudioNode.prototype.connect = function (target, ...rest) {
  if (target === this.context.destination) connect.call(this, heard.analyser);
  return connect.call(this, target, ...rest);
};
for (const name of ["start", "stop"]) {
  const inner = AudioBufferSourceNode.prototype[name];
  AudioBufferSourceNode.prototype[name] = function (...given) {
    heard[name + "s"] += 1;
    return inner.apply(this, given);
  };
}
heard.level = () => {
  const samples = new Float32Array(heard.analyser.fftSize);
  heard.analyser.getFloatTimeDomainData(samples);
  return Math.sqrt(samples.reduce((sum, one) => sum + one * one, 0) / samples.length);
};
"""


@pytest.fixture(scope="module")
def chromium():
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        reason = "Debian's chromium and chromium-driver are not installed (`make browser`)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def path(findings, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    reporting.write(findings, out)
    return out


@pytest.fixture
def opened(chromium, path):
    """The page afresh on a desktop; what it said to the console must be nothing, before and after a test."""
    chromium.get("about:blank")
    look(chromium, DESKTOP)
    chromium.get_log("browser")
    chromium.get_log("performance")
    chromium.get(path.as_uri())
    yield chromium
    assert chromium.get_log("browser") == []


def look(driver, size, scheme="light"):
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def ask(driver, expression):
    return driver.execute_script(f"return {expression}")


def place(driver):
    return float(ask(driver, "document.getElementById('seek').value"))


def until(driver, expression, seconds=10):
    WebDriverWait(driver, seconds, 0.02).until(lambda one: ask(one, expression))


def playing(driver):
    """Start it and wait until something is heard."""
    driver.find_element(By.ID, "play").click()
    until(driver, "heard.gains.length > 0 && heard.level() > 0.01")


def choose(driver, name, index):
    """Click what a finger would."""
    label = driver.find_elements(By.CSS_SELECTOR, f"label:has(input[name={name}])")[index]
    show(driver, label)
    label.click()


def show(driver, element):
    """Bring it to the middle, at once."""
    ask_of(driver, element, "it.scrollIntoView({block: 'center', behavior: 'instant'})")


def press(driver, *keys):
    webdriver.ActionChains(driver).send_keys(*keys).perform()


def test_page_is_the_only_thing_that_is_loaded(opened, path):
    requests = [
        one["message"] for one in opened.get_log("performance") if "Network.requestWillBeSent" in one["message"]
    ]
    loaded = [one for one in requests if '"url":"data:' not in one]
    assert len(loaded) == 1
    assert path.as_uri() in loaded[0]


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_everything_is_drawn_and_nothing_overflows(opened, size):
    look(opened, size)
    open_all(opened)
    width = ask(opened, "document.documentElement.scrollWidth")
    assert width <= size[0], "the page itself never scrolls sideways"
    charts = [one for one in opened.find_elements(By.CSS_SELECTOR, ".chart > svg") if one.is_displayed()]
    assert len(charts) == 4
    for one in charts:
        box = ask_of(opened, one, "const {width, height} = it.getBBox(); return [width, height]")
        assert min(box) > 100
        assert one.size["width"] > 300
        smallest = ask_of(
            opened,
            one,
            "return Math.min(...[...it.querySelectorAll('text')].map(t => t.getBoundingClientRect().height))",
        )
        assert smallest >= 8, "text can be read"
    pictures = [one for one in opened.find_elements(By.CSS_SELECTOR, ".picture") if one.is_displayed()]
    assert len(pictures) == 4, "reference, split, difference, mixture"
    for one in pictures:
        assert ask_of(opened, one, "return it.querySelector('img').naturalWidth") > 50
        assert ask_of(opened, one, "return it.querySelector('.wave svg path').getBBox().width") > 50
        assert one.size["width"] > 240


def ask_of(driver, element, body):
    return driver.execute_script(f"const it = arguments[0]; {body}", element)


def test_it_plays_and_pauses(opened):
    button = opened.find_element(By.ID, "play")
    assert button.accessible_name == "Play"
    assert place(opened) == 0
    playing(opened)
    assert button.accessible_name == "Pause"
    first = place(opened)
    until(opened, f"Math.abs(document.getElementById('seek').value - {first}) > 0.2")
    button.click()
    assert button.accessible_name == "Play"
    stands = place(opened)
    time.sleep(0.2)
    assert place(opened) == stands
    until(opened, "heard.level() === 0")
    opened.find_element(By.ID, "play").click()
    until(opened, "heard.level() > 0.01")
    assert ask(opened, "document.querySelector('.head').getBoundingClientRect().left") > 0


def test_switching_keeps_the_place_and_leaves_no_gap(opened):
    """Gains are all that changes, and those of what goes and what comes add up to one at any time."""
    playing(opened)
    starts = ask(opened, "heard.starts")
    streams = ask(opened, "heard.gains.length")
    assert starts == streams == 13, "the mixture and three of each stem"
    opened.execute_script(
        """
        heard.sums = [];
        heard.watch = setInterval(() => heard.sums.push(heard.gains.reduce((sum, one) => sum + one.gain.value, 0)), 1);
        """
    )
    seconds = float(opened.find_element(By.ID, "seek").get_attribute("max"))
    both = "[Number(document.getElementById('seek').value), heard.contexts[0].currentTime]"
    for key, source in (("2", "split"), ("1", "reference"), ("4", "mixture"), ("2", "split")):
        before, then = ask(opened, both)
        press(opened, key)
        assert ask(opened, "document.querySelector('input[name=source]:checked').value") == source
        after, now = ask(opened, both)
        off = (after - before - (now - then)) % seconds
        assert min(off, seconds - off) < 0.2, "the slider is drawn some frames later"
        time.sleep(0.1)
    sums = ask(opened, "clearInterval(heard.watch), heard.sums")
    assert len(sums) > 50
    # On a busy machine the sound goes on while a sum is taken: such a sample stands alone, a gap is many long.
    off = [not 0.9 < total < 1.1 for total in sums]
    assert not any(first and second for first, second in pairwise(off))
    assert ask(opened, "heard.starts") == starts
    assert ask(opened, "heard.stops") == 0
    assert ask(opened, "heard.contexts.length") == 1


def test_every_source_has_a_stream_of_its_own(opened):
    playing(opened)
    streams = set()
    for source in range(4):
        choose(opened, "source", source)
        until(opened, "heard.gains.filter(one => one.gain.value === 1).length === 1")
        streams.add(ask(opened, "heard.gains.findIndex(one => one.gain.value === 1)"))
        until(opened, "heard.level() > 0.005")
        assert ask(opened, "heard.gains.filter(one => one.gain.value === 0).length") == 12
    assert len(streams) == 4


def test_stems_bring_their_own_pictures_and_sound(opened, findings):
    def picture():
        return ask(opened, "document.querySelector('.stream.reference .picture:not([hidden]) img').alt")

    names = [stem.name for stem in findings.listening.stems]
    playing(opened)
    seen = set()
    for index, name in enumerate(names):
        choose(opened, "stem", index)
        assert picture() == f"Spectrogram of {name}, reference"
        until(opened, "heard.gains.filter(one => one.gain.value === 1).length === 1")
        seen.add(ask(opened, "heard.gains.findIndex(one => one.gain.value === 1)"))
    assert len(seen) == len(names)


def test_keys_do_everything(opened):
    press(opened, Keys.TAB)
    link = opened.switch_to.active_element
    assert link.text == "Skip to listening"
    link.send_keys(Keys.ENTER)
    play = opened.find_element(By.ID, "play")
    for _ in range(20):
        press(opened, Keys.TAB)
        if opened.switch_to.active_element == play:
            break
    assert opened.switch_to.active_element == play
    assert ask(opened, "getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus is seen"
    press(opened, " ")
    until(opened, "heard.gains.length > 0 && heard.level() > 0.01")
    press(opened, " ")
    assert play.accessible_name == "Play"
    before = place(opened)
    press(opened, Keys.ARROW_RIGHT)
    step = place(opened) - before
    assert step > 0.1
    press(opened, Keys.ARROW_LEFT)
    assert place(opened) == pytest.approx(before, abs=0.02)
    stem = "document.querySelector('input[name=stem]:checked').value"
    press(opened, Keys.ARROW_DOWN)
    assert ask(opened, stem) == "1"
    press(opened, Keys.ARROW_UP)
    assert ask(opened, stem) == "0"
    for key, source in zip("4321", ("mixture", "difference", "split", "reference"), strict=True):
        press(opened, key)
        assert ask(opened, "document.querySelector('input[name=source]:checked').value") == source


def test_space_elsewhere_still_scrolls(opened):
    assert ask(opened, "scrollY") == 0
    show(opened, opened.find_element(By.ID, "checks"))
    time.sleep(0.1)
    press(opened, " ")
    assert ask(opened, "heard.contexts.length") == 0


def test_a_click_into_a_picture_moves_there(opened):
    picture = opened.find_element(By.CSS_SELECTOR, ".stream.split .pictures")
    show(opened, picture)
    width = picture.size["width"]
    webdriver.ActionChains(opened).move_to_element_with_offset(picture, int(width / 4), 0).click().perform()
    seconds = float(opened.find_element(By.ID, "seek").get_attribute("max"))
    assert place(opened) == pytest.approx(0.75 * seconds, abs=0.02 * seconds)
    assert ask(opened, "document.querySelector('input[name=source]:checked').value") == "reference"


def open_all(driver):
    driver.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")


def test_everything_that_takes_the_focus_has_a_name(opened):
    open_all(opened)
    for one in opened.find_elements(By.CSS_SELECTOR, "button, input, a, summary, [tabindex]"):
        assert one.accessible_name, one.get_attribute("outerHTML")[:200]


def contrast(a, b):
    def luminance(colour):
        parts = [int(one) / 255 for one in colour.removeprefix("rgb(").rstrip(")").split(",")]
        r, g, b = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(opened, scheme):
    look(opened, DESKTOP, scheme)
    paper = ask(opened, "getComputedStyle(document.body).backgroundColor")
    assert contrast(paper, "rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)") > 14
    for selector in ("body", ".lede", ".muted", ".legend", ".status.pass", ".status.not-run", "a", ".chart.wide text"):
        shown = opened.find_element(By.CSS_SELECTOR, selector)
        colour = ask_of(opened, shown, "const s = getComputedStyle(it); return it.ownerSVGElement ? s.fill : s.color")
        assert contrast(paper, colour) >= 4.5, selector


def test_a_stem_without_a_difference_cannot_play_one(chromium, findings, tmp_path):
    from dataclasses import replace

    heard = findings.listening
    exact = replace(heard.stems[1], difference=None, gain_db=None)
    page = tmp_path / "exact.html"
    stems = (heard.stems[0], exact, *heard.stems[2:])
    reporting.write(replace(findings, listening=replace(heard, stems=stems)), page)
    look(chromium, DESKTOP)
    chromium.get(page.as_uri())
    choose(chromium, "source", 2)
    choose(chromium, "stem", 1)
    difference = chromium.find_element(By.CSS_SELECTOR, "input[value=difference]")
    assert not difference.is_enabled()
    assert ask(chromium, "document.querySelector('input[name=source]:checked').value") == "reference"
    choose(chromium, "stem", 2)
    assert difference.is_enabled()
