//! Who of a pool could take a request now: ready, as healthy as any, with room.

use std::sync::Arc;

use router_core::fleet::{
    Fit, Lease, Limits, Member, Phase, Pool, Profile, Released, Role, Verdict, Weight, Worker,
};
use router_core::pair::Pair;
use router_core::schedule::{self, Candidate, Draw, Question};
use router_core::sglang::Bootstrap;

use super::view::{Forecast, View};
use crate::config::LimitFlags;

/// What a request asks of a pool.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub model: Option<String>,
    pub weight: Weight,
    /// Workers that failed this request already: taken again only where no other is up.
    pub avoid: Vec<Arc<Worker>>,
    /// Nobody else has what the request continues.
    pub only: Option<Arc<Worker>>,
}

/// The places a request was given.
#[derive(Debug)]
pub(crate) enum Seats {
    /// A pair, and where its two engines meet.
    Pair {
        leases: Pair<Lease>,
        bootstrap: Bootstrap,
        /// What was predicted, by a policy that predicts.
        forecast: Option<Forecast>,
    },
    One(Lease),
}

impl Seats {
    /// Every lease, decode's or the single one last.
    pub(crate) fn leases(&self) -> impl Iterator<Item = &Lease> {
        match self {
            Seats::Pair { leases, .. } => [Some(&leases.prefill), Some(&leases.decode)],
            Seats::One(lease) => [None, Some(lease)],
        }
        .into_iter()
        .flatten()
    }
}

/// Why it was given none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSeat {
    /// Everybody who could serve it is full: waiting helps.
    Full,
    /// Nobody of the pool is ready for it.
    Nobody,
    /// The pool serves other models.
    NoModel,
}

/// How places are given.
pub(crate) struct Seating<'a> {
    pub pool: &'a Pool,
    pub ask: &'a Ask,
    pub view: &'a View,
    pub draw: Draw,
    pub limits: &'a LimitFlags,
}

impl Seating<'_> {
    /// Takes places for the request, or says why there are none.
    pub(crate) fn take(&self, released: &Released) -> Result<Seats, NoSeat> {
        let mut fits: Vec<&Fit> = self.pool.serving(self.ask.model.as_deref()).collect();
        if fits.len() > 1 {
            // A rollout mixes sets that do not fit each other: those of the best health.
            let ranks: Vec<Option<u8>> = fits.iter().map(|fit| self.fit_rank(fit)).collect();
            let best = ranks.iter().flatten().min().ok_or(NoSeat::Nobody)?;
            let mut ranks = ranks.iter();
            fits.retain(|_| ranks.next() == Some(&Some(*best)));
        }
        if fits.is_empty() {
            return Err(match self.pool.fits.is_empty() {
                true => NoSeat::Nobody,
                false => NoSeat::NoModel,
            });
        }
        // Beginning at a random one.
        let start = self.draw.turn as usize % fits.len();
        let mut answer = NoSeat::Nobody;
        for fit in fits[start..].iter().chain(&fits[..start]) {
            match self.in_fit(fit, released) {
                Err(NoSeat::Full) => answer = NoSeat::Full,
                Err(_) => {}
                seats => return seats,
            }
        }
        Err(answer)
    }

    /// How well the best pair of a set is, or its best single worker; `None`: nobody is ready.
    fn fit_rank(&self, fit: &Fit) -> Option<u8> {
        let best = |seats| self.ready(seats).map(|(_, member)| self.rank(member)).min();
        match self.pool.profile {
            Profile::Pd => Some(best(&fit.prefill)?.max(best(&fit.decode)?)),
            Profile::Single => best(&fit.unified),
        }
    }

    fn in_fit(&self, fit: &Fit, released: &Released) -> Result<Seats, NoSeat> {
        match self.pool.profile {
            Profile::Pd => {
                let chosen = self.pair(fit)?;
                let Pair { prefill, decode } = chosen.pair;
                let meet = self.pool.members[prefill].bootstrap.ok_or(NoSeat::Nobody)?;
                let bootstrap = Bootstrap::new(meet.ip(), meet.port());
                let worker = &self.pool.members[prefill].worker;
                let forecast = self.view.forecast(self.pool, &chosen, worker);
                let work = forecast.as_ref().map(|forecast| forecast.work_bytes as u64);
                let weight = self.ask.weight;
                let of_prefill =
                    Weight { prompt_bytes: work.unwrap_or(weight.prompt_bytes), ..weight };
                let prefill = self.lease(prefill, of_prefill, released).ok_or(NoSeat::Full)?;
                match self.lease(decode, weight, released) {
                    Some(decode) => {
                        let leases = Pair { prefill, decode };
                        Ok(Seats::Pair { leases, bootstrap, forecast })
                    }
                    // Filled since it was looked at. The line is locked here, so that a lease
                    // that tells of its end would wait for itself.
                    None => {
                        let worker = Arc::clone(prefill.worker());
                        prefill.withdraw();
                        worker.own.note(self.view.clock.now_ms(), worker.usage());
                        Err(NoSeat::Full)
                    }
                }
            }
            Profile::Single => {
                let all = self.candidates(&fit.unified)?;
                let chosen = self.view.policy.pick(&all, self.draw).ok_or(NoSeat::Full)?;
                self.lease(chosen, self.ask.weight, released).map(Seats::One).ok_or(NoSeat::Full)
            }
        }
    }

    /// The pair of a set that takes the request.
    fn pair(&self, fit: &Fit) -> Result<schedule::Chosen, NoSeat> {
        let prefill = self.candidates(&fit.prefill)?;
        let decode = self.candidates(&fit.decode)?;
        let Weight { prompt_bytes, kv_tokens, .. } = self.ask.weight;
        let ask = schedule::Ask { prompt_bytes, kv_tokens, ..Default::default() };
        let links = self.view.links();
        let question = Question {
            ask,
            links: Some(&links),
            assumptions: &self.view.assumptions,
            aim: self.view.aim,
            now_ms: self.view.clock.now_ms(),
            ..Question::of(&prefill, &decode, self.draw)
        };
        schedule::choose(self.view.policy, &question).ok_or(NoSeat::Full)
    }

    /// Those of the best health that is to be had, less those that are full. Health may be a
    /// last resort; capacity never is.
    fn candidates(&self, seats: &[usize]) -> Result<Vec<Candidate>, NoSeat> {
        let ready = || self.ready(seats).map(|(id, member)| (id, member, self.rank(member)));
        let best = ready().map(|(_, _, rank)| rank).min().ok_or(NoSeat::Nobody)?;
        let rates = self.view.rates(self.pool);
        let fit = ready().filter(|(_, _, rank)| *rank == best).filter_map(|(id, m, _)| {
            let usage = m.worker.usage();
            let group = m.group.as_deref().map_or(0, group_number);
            let limits = self.limits_of(m);
            let candidate = || self.view.candidate(id, m, usage, &rates);
            limits.admit(usage, self.ask.weight).then(|| Candidate { group, limits, ..candidate() })
        });
        let fit: Vec<Candidate> = fit.collect();
        if fit.is_empty() { Err(NoSeat::Full) } else { Ok(fit) }
    }

    fn ready<'s>(&'s self, seats: &'s [usize]) -> impl Iterator<Item = (usize, &'s Member)> {
        let members = seats.iter().map(|&id| (id, &self.pool.members[id]));
        members.filter(|(_, member)| {
            let meets = member.role != Role::Prefill || member.bootstrap.is_some();
            member.phase == Phase::Ready && meets && self.may_be(&member.worker)
        })
    }

    fn may_be(&self, worker: &Arc<Worker>) -> bool {
        self.ask.only.as_ref().is_none_or(|only| Arc::ptr_eq(only, worker))
    }

    fn rank(&self, member: &Member) -> u8 {
        let avoided = || self.ask.avoid.iter().any(|worker| Arc::ptr_eq(worker, &member.worker));
        match member.worker.health.verdict() {
            Verdict::Up if !avoided() => 0,
            Verdict::Up => 1,
            Verdict::Unknown => 2,
            Verdict::Failing => 3,
            Verdict::Down => 4,
        }
    }

    fn limits_of(&self, member: &Member) -> Limits {
        let usual = u64::from(self.limits.max_requests_per_worker);
        let facts = member.facts.as_deref();
        match member.role {
            Role::Decode => Limits {
                // What it tells now counts more than what it told at its start.
                requests: member
                    .worker
                    .engine
                    .max_requests()
                    .or(facts.and_then(|f| f.max_running_requests).map(u64::from))
                    .unwrap_or(usual),
                kv_tokens: member
                    .worker
                    .engine
                    .max_tokens()
                    .or(facts.and_then(|f| f.max_total_num_tokens))
                    .unwrap_or(u64::MAX),
            },
            Role::Prefill | Role::Unified => Limits { requests: usual, kv_tokens: u64::MAX },
        }
    }

    fn lease(&self, id: usize, weight: Weight, released: &Released) -> Option<Lease> {
        let member = &self.pool.members[id];
        let worker = &member.worker;
        let released = Some(Arc::clone(released));
        let lease = worker.try_lease(weight, self.limits_of(member), released)?;
        worker.own.note(self.view.clock.now_ms(), worker.usage());
        Some(lease)
    }
}

/// FNV-1a of the label, never 0: the scheduler compares numbers, not texts.
fn group_number(label: &str) -> u64 {
    let hash = label.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}
