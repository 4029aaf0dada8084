//! The page of the admin port in a real browser, on live fleets: what a person sees of a slow decode and a dead
//! prefill, with an agent and without. Needs Chromium, root and BPF.

mod live;
mod plain;

use router_tests::browser::Look;

/// A laptop's window.
const WIDE: Look = Look { width: 1280, height: 900, dark: false };
/// A telephone's.
const NARROW: Look = Look { width: 390, height: 844, dark: false };

/// The text of the row of a worker, as JavaScript.
fn row_of(worker: &str) -> String {
    format!("(document.querySelector('tr[data-worker=\"default/{worker}\"]')?.innerText ?? '')")
}

/// Elements that reach out of their card or of the window, as JavaScript.
const OVERFLOWING: &str = "[...document.querySelectorAll('main *')].filter((one) => { \
     const box = one.getBoundingClientRect(); \
     const card = one.closest('.card')?.getBoundingClientRect().right ?? innerWidth; \
     return box.width > 0 && box.right > Math.min(card, innerWidth) + 1 \
       && !one.closest('.scroll, .hidden, thead'); \
   }).map((one) => one.outerHTML.slice(0, 120))";
