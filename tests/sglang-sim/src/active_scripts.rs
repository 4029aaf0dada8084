//! The active scripts, and which script applies to a request.

use parking_lot::Mutex;

use crate::script::{Action, Script};

#[derive(Debug)]
struct ActiveScript {
    script: Script,
    matched: u32,
    applied: u32,
}

/// The active scripts, oldest first. The first script that matches a request applies to it.
#[derive(Debug, Default)]
pub(crate) struct ActiveScripts(Mutex<Vec<ActiveScript>>);

impl ActiveScripts {
    fn scripts(&self) -> parking_lot::MutexGuard<'_, Vec<ActiveScript>> {
        self.0.lock()
    }

    pub(crate) fn add(&self, script: Script) {
        self.scripts().push(ActiveScript { script, matched: 0, applied: 0 });
    }

    pub(crate) fn clear(&self) {
        self.scripts().clear();
    }

    pub(crate) fn next_action(&self, path: &str, generates: bool, body: &[u8]) -> Option<Action> {
        let mut scripts = self.scripts();
        let position = scripts.iter_mut().position(|active| {
            let matching = &active.script.matching;
            let matches = match &matching.path {
                Some(wanted) => wanted == path,
                None => generates,
            } && matching
                .body_contains
                .as_ref()
                .is_none_or(|text| contains(body, text.as_bytes()));
            if matches {
                active.matched += 1;
            }
            matches && active.matched >= matching.nth.unwrap_or(1)
        })?;
        let active = &mut scripts[position];
        active.applied += 1;
        let action = active.script.action.clone();
        if active.applied == active.script.times {
            scripts.remove(position);
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
    fn a_script_applies_from_the_nth_request_on_until_its_times_are_used() {
        let scripts = ActiveScripts::default();
        let mut wanted = Script::once(Action::HangHead).on("/generate").nth(2);
        wanted.times = 2;
        scripts.add(wanted);
        let applied: Vec<bool> =
            (0..5).map(|_| scripts.next_action("/generate", true, b"").is_some()).collect();
        assert_eq!(applied, [false, true, true, false, false]);
        scripts.add(Script::once(Action::HangHead));
        assert!(scripts.next_action("/ready", false, b"").is_none());
        assert!(scripts.next_action("/v1/completions", true, b"").is_some());
    }
}
