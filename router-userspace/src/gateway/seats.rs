//! Who of a pool could take a request now: ready, as healthy as any, with room.

use std::sync::Arc;

use router_core::fleet::{
    Facts, Fit, Head, Lease, Limits, Load, MOST_RANKS, Member, Phase, Pool, Profile, Ranks,
    Released, Role, Steered, Verdict, Weight, Worker,
};
use router_core::pair::Pair;
use router_core::schedule::prefix::key_of;
use router_core::schedule::{self, Candidate, Chosen, Draw, Estimate, Question};
use router_core::sglang::Bootstrap;

use super::choice::{Choice, Weighed};
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
    /// Hashes of the prompt's blocks; none where nobody asks who has them.
    pub blocks: Vec<u64>,
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
        /// The data-parallel ranks that it is for, where engines let themselves be steered.
        ranks: Pair<Option<Steered>>,
        /// Why, by a policy that predicts.
        choice: Option<Arc<Choice>>,
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
                let places = self.reconciled(chosen.pair.map(Place::of_id));
                let member = &self.pool.members[places.prefill.member];
                let meet = member.bootstrap.ok_or(NoSeat::Nobody)?;
                let bootstrap = Bootstrap::new(meet.ip(), meet.port());
                let ranks = places.map(|place| self.steered(place));
                let work = chosen.estimate.map(|estimate| estimate.work_bytes as u64);
                let weight = self.ask.weight;
                let of_prefill =
                    Weight { prompt_bytes: work.unwrap_or(weight.prompt_bytes), ..weight };
                let prefill =
                    self.lease(places.prefill, of_prefill, released).ok_or(NoSeat::Full)?;
                match self.lease(places.decode, weight, released) {
                    Some(decode) => {
                        let forecast = self.view.forecast(self.pool, &chosen, prefill.worker());
                        self.learn(&chosen, places.prefill);
                        let choice = self.explained(&chosen);
                        let leases = Pair { prefill, decode };
                        Ok(Seats::Pair { leases, bootstrap, forecast, ranks, choice })
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
                let lease = self.lease(Place::of_id(chosen), self.ask.weight, released);
                lease.map(Seats::One).ok_or(NoSeat::Full)
            }
        }
    }

    /// The pair of a set that takes the request.
    fn pair(&self, fit: &Fit) -> Result<schedule::Chosen, NoSeat> {
        let prefill = self.candidates(&fit.prefill)?;
        let decode = self.candidates(&fit.decode)?;
        let Weight { prompt_bytes, kv_tokens, .. } = self.ask.weight;
        let held = self.view.prefixes().lookup(&self.ask.blocks);
        let prefix_key = key_of(&self.ask.blocks);
        let ask = schedule::Ask { prompt_bytes, kv_tokens, held, prefix_key };
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
            let group = m.group.as_deref().map_or(0, group_number);
            let limits = self.limits_of(m);
            let admits = limits.admit(m.worker.usage(), self.ask.weight);
            admits.then_some((id, m, group, limits))
        });
        let fit = fit.flat_map(|(id, m, group, limits)| {
            let ranks = ranks_of(m);
            let count = ranks.map_or(1, |ranks| ranks.count);
            let whole = self.view.candidate(id, m, m.worker.usage(), &rates);
            let whole = Candidate { group, limits, ..whole };
            (0..count).map(move |rank| {
                let place = Place { member: id, rank: ranks.map(|_| rank) };
                place.candidate(whole, &m.worker, count)
            })
        });
        let admits = |one: &Candidate| one.limits.admit(one.usage, self.ask.weight);
        let fit: Vec<Candidate> = fit.filter(admits).collect();
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
                    .or(facts.and_then(kv_tokens_of_all_ranks))
                    .unwrap_or(u64::MAX),
            },
            Role::Prefill | Role::Unified => Limits { requests: usual, kv_tokens: u64::MAX },
        }
    }

    fn lease(&self, place: Place, weight: Weight, released: &Released) -> Option<Lease> {
        let member = &self.pool.members[place.member];
        let worker = &member.worker;
        let released = Some(Arc::clone(released));
        let lease = worker.try_lease(weight, self.limits_of(member), released)?;
        worker.own.note(self.view.clock.now_ms(), worker.usage());
        Some(lease.at_rank(place.rank))
    }

    fn steered(&self, Place { member, rank }: Place) -> Option<Steered> {
        Some(Steered { of: ranks_of(&self.pool.members[member])?, rank: rank? })
    }

    /// The prompt is sent: its prefill has it from now on.
    fn learn(&self, chosen: &Chosen, place: Place) {
        let Some(Estimate { work_bytes, .. }) = chosen.estimate else { return };
        let worker = &self.pool.members[place.member].worker;
        let rank = place.rank.unwrap_or(0);
        let cache = Candidate { worker: worker.identity, rank, ..Candidate::default() }.cache();
        if !self.ask.blocks.is_empty() {
            self.view.prefixes().sent(cache, &self.ask.blocks);
        }
        let Weight { prompt_bytes, kv_tokens, .. } = self.ask.weight;
        let now_ms = self.view.clock.now_ms();
        let (tokens, bytes) = (kv_tokens as f32, prompt_bytes as f32);
        self.pool.experience.asked(tokens, bytes, work_bytes, now_ms);
    }

    fn explained(&self, chosen: &Chosen) -> Option<Arc<Choice>> {
        let named = |(pair, estimate): (Pair<usize>, Estimate)| {
            let member = |id| &self.pool.members[Place::of_id(id).member];
            Weighed { pair: pair.map(|id| Arc::clone(&member(id).worker.name)), estimate }
        };
        Some(Arc::new(Choice {
            taken: named((chosen.pair, chosen.estimate?)),
            runner_up: chosen.runner_up.map(named),
            explored: chosen.explored,
        }))
    }

    /// Where both engines go by the room and no room leads to both ranks, prefill takes the least
    /// busy of its ranks that a room for decode's leads to: prefill has no limit of room.
    fn reconciled(&self, places: Pair<Place>) -> Pair<Place> {
        let Pair { prefill: Some(mine), decode: Some(theirs) } =
            places.map(|place| self.steered(place))
        else {
            return places;
        };
        let meets = |rank: &u32| mine.of.meet(*rank, &theirs.of, theirs.rank);
        if meets(&mine.rank) {
            return places;
        }
        let worker = &self.pool.members[places.prefill.member].worker;
        let rank = (0..mine.of.count)
            .filter(meets)
            .min_by_key(|rank| worker.usage_of_rank(*rank).prompt_bytes);
        Pair { prefill: Place { rank, ..places.prefill }, ..places }
    }
}

/// A member and, where it can be steered to, one of its ranks.
#[derive(Clone, Copy, Debug)]
struct Place {
    member: usize,
    rank: Option<u32>,
}

impl Place {
    /// Both in one number, as a candidate's name.
    fn id(self) -> usize {
        self.member * (MOST_RANKS as usize + 1) + self.rank.map_or(0, |rank| rank as usize + 1)
    }

    fn of_id(id: usize) -> Place {
        let stride = MOST_RANKS as usize + 1;
        let rank = (id % stride).checked_sub(1).map(|rank| rank as u32);
        Place { member: id / stride, rank }
    }

    /// One of `count` candidates of a member, made of what is known of the `whole`. What others
    /// have there is thought to be spread evenly.
    fn candidate(self, whole: Candidate, worker: &Worker, count: u32) -> Candidate {
        let whole = Candidate { id: self.id(), ..whole };
        let Some(rank) = self.rank else { return whole };
        let load = whole.load.map(|load| Load {
            others_requests: load.others_requests / count as f32,
            others_waiting_bytes: load.others_waiting_bytes / count as f32,
            ..load
        });
        let (usage, limits) = (worker.usage_of_rank(rank), limits_of_rank(whole.limits, count));
        // The line is the worker's, not the rank's.
        Candidate { rank, usage, limits, load, head: Head::default(), ..whole }
    }
}

fn ranks_of(member: &Member) -> Option<Ranks> {
    Ranks::of(member.facts.as_deref()?, member.role)
}

/// Engines tell the requests of all ranks together, and the KV tokens of one.
fn kv_tokens_of_all_ranks(facts: &Facts) -> Option<u64> {
    let ranks = u64::from(facts.dp_size.unwrap_or(1).max(1));
    Some(facts.max_total_num_tokens?.saturating_mul(ranks))
}

fn limits_of_rank(limits: Limits, count: u32) -> Limits {
    let each = |all: u64| if all == u64::MAX { all } else { all.div_ceil(u64::from(count)) };
    Limits { requests: each(limits.requests), kv_tokens: each(limits.kv_tokens) }
}

/// FNV-1a of the label, never 0: the scheduler compares numbers, not texts.
fn group_number(label: &str) -> u64 {
    let hash = label.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}
