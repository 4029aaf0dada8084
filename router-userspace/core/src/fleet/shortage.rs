//! Why a pool cannot serve: how many workers of each role are ready, and what the others lack.

use std::collections::BTreeMap;

use super::{Member, Phase, Pool, Profile, Role, Verdict};

/// Maximum number of causes that a text names.
const MAX_CAUSES: usize = 4;

impl Pool {
    /// Whether all ready workers of a role, and there are some, are misconfigured: then requests wait for
    /// them in vain.
    pub fn is_misconfigured(&self) -> bool {
        [Role::Prefill, Role::Decode, Role::Unified].into_iter().any(|role| {
            let of_role = |member: &&Member| member.role == role && member.phase == Phase::Ready;
            let mut ready = self.members.iter().filter(of_role).peekable();
            ready.peek().is_some() && ready.all(Member::is_misconfigured)
        })
    }

    /// Returns how many workers of each role are ready, and why the others are not. Names no pod and
    /// no address: clients see it.
    pub fn shortage(&self) -> String {
        let roles = match self.profile {
            Profile::Pd => &[(Role::Prefill, "prefill"), (Role::Decode, "decode")][..],
            Profile::Single => &[(Role::Unified, "worker")],
        };
        let mut counts = Vec::new();
        let mut causes: BTreeMap<String, usize> = BTreeMap::new();
        let mut is_missing = false;
        for &(role, noun) in roles {
            let members = || self.members.iter().filter(|member| member.role == role);
            let (mut ready, total) = (0, members().count());
            is_missing |= total == 0;
            for member in members().filter(|member| member.contradiction().is_none()) {
                match cause(member) {
                    None => ready += 1,
                    Some(cause) => *causes.entry(format!("{noun}: {cause}")).or_default() += 1,
                }
            }
            counts.push(format!("{ready} of {total} {noun}s ready"));
        }
        for excluded in &self.excluded {
            *causes.entry(format!("excluded: {}", excluded.reason)).or_default() += 1;
        }
        let mut details: Vec<String> = causes
            .iter()
            .take(MAX_CAUSES)
            .map(|(cause, count)| format!("{count} {cause}"))
            .collect();
        if causes.len() > MAX_CAUSES {
            details.push(format!("{} other causes", causes.len() - MAX_CAUSES));
        }
        if is_missing && !self.selection.is_empty() {
            details.push(self.selection.to_string());
        }
        let counts = counts.join(", ");
        match details.is_empty() {
            true => counts,
            false => format!("{counts} ({})", details.join("; ")),
        }
    }
}

/// Why a request that is sent to this member is not expected to be served.
fn cause(member: &Member) -> Option<String> {
    let health = &member.worker.health;
    match (member.phase, member.bootstrap) {
        (Phase::NotReady, _) => Some("its pod is not ready".to_owned()),
        (Phase::Draining, _) => Some("its pod is terminating".to_owned()),
        (Phase::Ready, None) if member.role == Role::Prefill => {
            Some("its bootstrap port is not known".to_owned())
        }
        (Phase::Ready, Some(bootstrap)) if health.is_unregistered() => {
            Some(format!("its bootstrap server at port {} cannot be reached", bootstrap.port()))
        }
        (Phase::Ready, _) if health.verdict() == Verdict::Down => Some("it is down".to_owned()),
        (Phase::Ready, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ObjectName, pool};
    use super::*;

    fn member(name: &str, role: Role) -> Member {
        let bootstrap = Some(([127, 0, 0, 1], 8998).into());
        Member { bootstrap, ..pool::tests::member(name, role, None) }
    }

    fn shortage(members: Vec<Member>) -> String {
        let name = ObjectName { namespace: "default".into(), name: "pool".into() };
        let pool = Pool::new(name, Profile::Pd, members);
        Pool { selection: "selector app=qwen".into(), ..pool }.shortage()
    }

    #[test]
    fn each_role_is_counted_and_the_causes_are_named() {
        let two = || vec![member("a", Role::Prefill), member("b", Role::Prefill)];
        assert_eq!(
            shortage(two()),
            "2 of 2 prefills ready, 0 of 0 decodes ready (2 excluded: no decode of this pool is \
             compatible with it; selector app=qwen)"
        );
        assert_eq!(
            shortage(Vec::new()),
            "0 of 0 prefills ready, 0 of 0 decodes ready (selector app=qwen)"
        );
        let mut members = two();
        members[0].worker.health.bootstrap_refused();
        members[1].phase = Phase::NotReady;
        members.push(member("d", Role::Decode));
        members[2].worker.health.unreachable();
        assert_eq!(
            shortage(members),
            "0 of 2 prefills ready, 0 of 1 decodes ready (1 decode: it is down; 1 prefill: its \
             bootstrap server at port 8998 cannot be reached; 1 prefill: its pod is not ready)"
        );
    }
}
