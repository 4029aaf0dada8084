//! A site with an agent, a slow decode and a dead prefill, and the pictures of it.

use std::path::PathBuf;
use std::time::Duration;

use router_tests::browser::{Browser, Look};
use router_tests::site::crowd::Crowd;
use router_tests::site::{Site, SiteGateway};
use serde_json::json;

use crate::{NARROW, OVERFLOWING, WIDE, row_of};

/// Maximum size of a picture: the documents have some.
const MAX_PICTURE: usize = 200_000;

/// Three prefills and four decodes: `decode-2` has steps of ten times the length.
fn site() -> (Site, SiteGateway) {
    let mut site = Site::new();
    for _ in 0..3 {
        site.engine(
            "prefill",
            false,
            "--prefill-tokens-per-second 30000 --kv-bytes-per-token 16384",
        );
    }
    for at in 0..4 {
        let step = if at == 2 { 40 } else { 4 };
        let flags = format!("--inter-token-ms {step} --kv-bytes-per-token 16384");
        site.engine("decode", false, &flags);
    }
    let route = router_tests::manifests::route("/other", "missing-pool");
    site.manifests.put("other.yaml", &route);
    site.agent("");
    let agent = site.agent_address();
    // A failed request is one that its client sees.
    let gateway = site.gateway(&format!("--agent {agent} --max-attempts 1"));
    gateway.until_loads_fresh(7);
    (site, gateway)
}

fn browser_of(gateway: &SiteGateway, runtime: &tokio::runtime::Runtime) -> Browser {
    let browser = runtime.block_on(Browser::start(Some(&gateway.outside)));
    runtime.block_on(async {
        browser.look(WIDE).await;
        browser.open(&format!("http://{}/", gateway.admin)).await;
        browser.until("it is drawn", "document.body.dataset.drawn === 'true'").await;
    });
    browser
}

#[test]
fn a_slow_decode_and_a_dead_prefill_are_seen_and_pictures_show_them() {
    let (mut site, gateway) = site();
    let crowd = Crowd::arriving(std::slice::from_ref(&gateway), Duration::from_millis(60));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let browser = browser_of(&gateway, &runtime);
    runtime.block_on(async {
        let flows = "[...document.querySelectorAll('#map .flow:not(.no-rate)')].length > 5";
        browser.until("KV flows as the agent counts it", flows).await;
        let slow = format!("{}.includes('its peers')", row_of("decode-2"));
        browser.until("decode-2 is compared with its peers", &slow).await;
        let late = "[...document.querySelectorAll('#map .box.late')]\
                    .some((box) => box.textContent.includes('decode-2') && box.textContent.includes('slower'))";
        browser.until("the map marks decode-2 as slower", late).await;
    });
    // Its process ends and its pod stays.
    site.engines.retain(|engine| engine.name != "prefill-1");
    runtime.block_on(async {
        let down = format!("{}.includes('down')", row_of("prefill-1"));
        browser.until("prefill-1 is down", &down).await;
        let first = "document.querySelector('#worker-table tbody tr').dataset.worker === 'default/prefill-1'";
        browser.until("it is the first of the workers", first).await;
        let since_and_why = "((row) => /for \\d+ s/.test(row.cells[1].innerText) && row.cells[2].innerText.includes('cannot be reached'))\
                             (document.querySelector('tr[data-worker=\"default/prefill-1\"]'))";
        browser.until("since when and why", since_and_why).await;
        let marked = "[...document.querySelectorAll('#map .box.bad')].some((box) => box.textContent.includes('prefill-1'))";
        browser.until("the map marks prefill-1", marked).await;
        browser.until("it is announced", "document.getElementById('changes').textContent.includes('prefill-1 is down')").await;
        let why = "document.querySelectorAll('#terms tbody tr').length === 8 && \
                   document.getElementById('why-text').textContent.includes('Runner-up: ')";
        browser.until("the terms of the pair and of the runner-up", why).await;
        let waterfall = "['Waited for capacity', 'Prefill and KV transfer', 'The answer'].every((part) => \
                         document.getElementById('waterfall').innerText.includes(part))";
        browser.until("the waterfall of a request", waterfall).await;
        browser.until("failures by reason", "document.querySelectorAll('#failures tbody tr').length > 0").await;
        browser.until("problems by object", "document.getElementById('problems').innerText.includes('missing-pool')").await;
        pictures(&browser).await;
        assert_eq!(browser.errors(), Vec::<String>::new());
    });
    drop(crowd);
}

async fn pictures(browser: &Browser) {
    let folder = std::env::var_os("PD_ROUTER_PICTURES").map(PathBuf::from);
    for (name, look) in
        [("page-light", WIDE), ("page-dark", Look { dark: true, ..WIDE }), ("page-narrow", NARROW)]
    {
        browser.look(look).await;
        browser
            .until(
                "it is drawn for its width",
                "document.querySelector('#map svg').getBoundingClientRect().right <= innerWidth",
            )
            .await;
        assert_eq!(browser.eval(OVERFLOWING).await, json!([]), "{name}");
        let picture = browser.picture().await;
        let size = picture.len();
        // The documents have no use for the narrow one.
        if let Some(folder) = folder.as_ref().filter(|_| look.width == WIDE.width) {
            std::fs::write(folder.join(format!("{name}.webp")), picture).expect("written");
        }
        assert!(size < MAX_PICTURE, "{name}: {size} bytes");
    }
    browser.look(WIDE).await;
}
