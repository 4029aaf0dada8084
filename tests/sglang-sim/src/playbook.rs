//! The scripts in force, and which request meets which.

use std::sync::Mutex;

use crate::script::{Action, Script};

#[derive(Debug)]
struct Pending {
    script: Script,
    seen: u32,
    struck: u32,
}

/// The scripts in force, oldest first; a request meets the first that wants it.
#[derive(Debug, Default)]
pub(crate) struct Playbook(Mutex<Vec<Pending>>);

impl Playbook {
    fn pending(&self) -> std::sync::MutexGuard<'_, Vec<Pending>> {
        self.0.lock().expect("no code panics while it holds the playbook")
    }

    pub(crate) fn add(&self, script: Script) {
        self.pending().push(Pending { script, seen: 0, struck: 0 });
    }

    pub(crate) fn clear(&self) {
        self.pending().clear();
    }

    pub(crate) fn strike(&self, path: &str, generates: bool, body: &[u8]) -> Option<Action> {
        let mut list = self.pending();
        let place = list.iter_mut().position(|pending| {
            let matching = &pending.script.matching;
            let fits = match &matching.path {
                Some(wanted) => wanted == path,
                None => generates,
            } && matching
                .body_contains
                .as_ref()
                .is_none_or(|text| contains(body, text.as_bytes()));
            if fits {
                pending.seen += 1;
            }
            fits && pending.seen >= matching.nth.unwrap_or(1)
        })?;
        let pending = &mut list[place];
        pending.struck += 1;
        let action = pending.script.action.clone();
        if pending.struck == pending.script.times {
            list.remove(place);
        }
        Some(action)
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_strikes_from_the_nth_request_on_as_often_as_it_says() {
        let book = Playbook::default();
        let mut wanted = Script::once(Action::HangHead).on("/generate").nth(2);
        wanted.times = 2;
        book.add(wanted);
        let strikes: Vec<bool> =
            (0..5).map(|_| book.strike("/generate", true, b"").is_some()).collect();
        assert_eq!(strikes, [false, true, true, false, false]);
        book.add(Script::once(Action::HangHead));
        assert!(book.strike("/ready", false, b"").is_none());
        assert!(book.strike("/v1/completions", true, b"").is_some());
    }
}
