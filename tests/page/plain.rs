//! A gateway without an agent: what is unknown, what clients send, the token, and the keyboard.

use std::time::Duration;

use http::HeaderValue;
use router_tests::browser::Browser;
use router_tests::folder::Folder;
use router_tests::{Fleet, Gateway};
use serde_json::{Value, json};
use sglang_sim::{Action, Config};

use crate::{NARROW, OVERFLOWING, WIDE, row_of};

const CHAT: &str = "/v1/chat/completions";

async fn opened(gateway: &Gateway) -> Browser {
    let browser = Browser::start(None).await;
    browser.look(WIDE).await;
    browser.open(&format!("http://{}/", gateway.admin.address)).await;
    browser
}

async fn send(gateway: &Gateway, id: &str, status: u16) {
    let body = json!({"model": "m", "stream": true, "max_tokens": 8,
        "messages": [{"role": "user", "content": "hi"}]});
    let mut request = gateway.client.json_request(CHAT, body.to_string());
    let id = HeaderValue::from_str(id).expect("a header");
    request.headers_mut().insert("x-request-id", id);
    gateway.client.send(request).await.answer().await.expect_status(status);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_agent_counts_is_unknown_and_texts_of_clients_are_texts() {
    let fleet = Fleet::start(2, 2).await;
    let gateway = fleet.gateway_with(&["--max-attempts", "1"]).await;
    for number in 0..8 {
        send(&gateway, &format!("request-{number}"), 200).await;
    }
    let hostile = "<img src=x onerror=alert(1)>";
    for decode in &fleet.decode {
        let body = r#"{"message":"<script>document.title='taken'</script>"}"#;
        decode.always(Action::Status { status: 400, body: body.into() });
    }
    send(&gateway, hostile, 400).await;
    let browser = opened(&gateway).await;
    browser
        .until("the flows are dashed", "document.querySelectorAll('#map .flow.no-rate').length > 0")
        .await;
    assert_eq!(
        browser.eval("document.querySelectorAll('#map .flow:not(.no-rate)').length").await,
        0
    );
    let cells = "[...document.querySelectorAll('#flows tbody tr')].every((row) => row.cells[3].textContent === 'unknown')";
    browser.until("the table has no number for them", cells).await;
    let load = format!("/unknown\\s+no agent reports it/.test({})", row_of("prefill-0"));
    browser.until("its load is unknown", &load).await;
    // The failed one is the first, and is chosen.
    let first = format!("document.querySelector('.pick').textContent === {}", json!(hostile));
    browser.until("the hostile name is written", &first).await;
    browser
        .until(
            "it is shown",
            "document.getElementById('request-summary').textContent.includes('onerror')",
        )
        .await;
    browser
        .until(
            "what failed",
            "document.getElementById('waterfall').innerText.includes('it failed here')",
        )
        .await;
    browser
        .until(
            "its reason counts",
            "document.querySelector('#failures tbody tr td').textContent === '1'",
        )
        .await;
    assert_eq!(browser.eval("document.querySelectorAll('img, body script').length").await, 0);
    assert_eq!(browser.eval("document.title").await, "pd-router");
    assert_downloads_bundle(&browser, &gateway, hostile).await;
    browser.look(NARROW).await;
    browser
        .until(
            "the narrow page is drawn",
            "document.querySelector('#map svg').getBoundingClientRect().right <= innerWidth",
        )
        .await;
    assert_eq!(browser.eval(OVERFLOWING).await, json!([]));
    assert_eq!(browser.errors(), Vec::<String>::new());
}

/// What is known of the shown request is downloaded with one button.
async fn assert_downloads_bundle(browser: &Browser, gateway: &Gateway, id: &str) {
    // The file is kept in the page: no browser writes one.
    let press = "(() => { \
         URL.createObjectURL = (file) => { file.text().then((text) => { window.saved = text; }); return '#'; }; \
         HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download; }; \
         document.querySelector('#bundle button').click(); })()";
    browser.eval(press).await;
    browser.until("the bundle is saved", "typeof window.saved === 'string'").await;
    let name = browser.eval("window.savedAs").await;
    assert_eq!(name, "request-_img_src_x_onerror_alert_1__.json");
    let saved = browser.eval("window.saved").await;
    let saved: Value = serde_json::from_str(saved.as_str().expect("a text")).expect("JSON");
    let path = "/requests/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E/bundle";
    let bundle = gateway.admin.get(path).await.expect_status(200).json();
    assert_eq!(bundle["request"]["id"], id);
    // As the gateway wrote it: the rest has what changes.
    for key in ["version", "request", "pair", "recent_failures", "problems"] {
        assert_eq!(saved[key], bundle[key], "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_chosen_by_hand_stays_while_others_end() {
    let fleet = Fleet::start(1, 1).await;
    let gateway = fleet.gateway().await;
    send(&gateway, "chosen", 200).await;
    let browser = opened(&gateway).await;
    browser.until("it is listed", "document.querySelectorAll('.pick').length === 1").await;
    let latest = "(() => { const order = document.getElementById('order'); \
         order.value = 'last'; order.dispatchEvent(new Event('change')); \
         document.querySelector('.pick').click(); })()";
    browser.eval(latest).await;
    // The list has twelve.
    for number in 0..14 {
        send(&gateway, &format!("later-{number}"), 200).await;
    }
    let listed = "document.querySelectorAll('.pick').length === 12 && \
                  document.querySelector('.pick').textContent === 'later-13'";
    browser.until("later ones are listed", listed).await;
    let pressed = "document.querySelector('.pick[aria-pressed=\"true\"]')?.textContent";
    assert_eq!(browser.eval(pressed).await, "chosen");
    let summary = browser.eval("document.getElementById('request-summary').textContent").await;
    assert!(summary.as_str().is_some_and(|text| text.starts_with("chosen ")), "{summary}");
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_asks_for_the_token_and_is_used_with_the_keyboard() {
    let folder = Folder::new("page-token");
    let file = folder.path().join("token");
    std::fs::write(&file, "secret\n").expect("written");
    let inter_token = Duration::from_millis(10);
    let fleet = Fleet::start_with(1, 1, |config| Config { inter_token, ..config }).await;
    let flags = ["--admin-token-file", file.to_str().expect("UTF-8")];
    let gateway = Gateway::start_with(&fleet.manifests, &flags).await;
    for id in ["one", "two"] {
        send(&gateway, id, 200).await;
    }
    let browser = opened(&gateway).await;
    browser.until("it asks", "document.getElementById('login').open").await;
    assert_eq!(browser.eval("document.activeElement.id").await, "token");
    browser.press("Escape").await;
    let closed =
        "!document.getElementById('login').open && !document.getElementById('unlock').hidden";
    browser.until("there is a way back", closed).await;
    browser.eval("document.getElementById('unlock').click()").await;
    browser.until("it asks once more", "document.getElementById('login').open").await;
    browser.eval("document.getElementById('token').value = 'wrong\u{2026}'").await;
    browser.press("Enter").await;
    let refused = "document.getElementById('login-error').textContent.includes('ASCII')";
    browser.until("it names what no token has", refused).await;
    browser.eval("document.getElementById('token').value = 'wrong'").await;
    browser.press("Enter").await;
    browser
        .until(
            "it asks again",
            "document.getElementById('login-error').textContent.includes('not the token')",
        )
        .await;
    browser.eval("document.getElementById('token').value = 'secret'").await;
    browser.press("Enter").await;
    browser.until("it is drawn", "document.querySelectorAll('.pick').length === 2").await;
    // Every control is reached, in the order of the page.
    browser.eval("document.body.focus(), document.activeElement.blur()").await;
    let mut reached = Vec::new();
    for _ in 0..20 {
        browser.press("Tab").await;
        let name = browser.eval("document.activeElement.id || document.activeElement.className || document.activeElement.tagName").await;
        reached.push(name.as_str().unwrap_or_default().to_owned());
        if reached.iter().filter(|name| *name == "pick").count() == 2 {
            break;
        }
    }
    let order = ["skip", "pause", "SUMMARY", "order", "pick", "pick"];
    let found: Vec<&String> =
        reached.iter().filter(|name| order.contains(&name.as_str())).collect();
    assert_eq!(found, order, "{reached:?}");
    browser.press("Enter").await;
    let chosen = "document.activeElement.getAttribute('aria-pressed') === 'true' && \
                  document.getElementById('request-summary').textContent.includes(document.activeElement.textContent)";
    browser.until("the request under the focus is shown", chosen).await;
    assert_shows_the_drain(&browser, &gateway).await;
}

/// A drain is shown from its begin to the end of the last request.
async fn assert_shows_the_drain(browser: &Browser, gateway: &Gateway) {
    let body = json!({"model": "m", "stream": true, "max_tokens": 1000, "ignore_eos": true,
        "messages": [{"role": "user", "content": "hi"}]});
    let mut stream = gateway.client.open(CHAT, &body).await;
    stream.next().await.expect("a first event");
    gateway.terminate();
    let state = "document.body.dataset.state";
    browser.until("the drain is shown", &format!("{state} === 'draining'")).await;
    // The page asks again after 500 ms.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(browser.eval(state).await, "draining");
    let notice = browser.eval("document.getElementById('notice').textContent").await;
    let notice = notice.as_str().unwrap_or_default();
    assert!(notice.starts_with("The gateway drains: running requests finish"), "{notice}");
    drop(stream);
}
