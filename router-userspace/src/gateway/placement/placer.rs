//! Who of a pool could take a request now: ready, as healthy as any, with room.

use std::net::SocketAddr;
use std::sync::Arc;

use router_core::fleet::{
    CompatibleSet, Lease, OnRelease, Pool, Profile, RankAssignment, Weight, Worker, cache_of,
};
use router_core::pair::Pair;
use router_core::schedule::{self, AgentTrust, Candidate, ChoiceInput, Chosen, Draw, Estimate};
use router_core::sglang::BootstrapAddress;

use super::candidates::Place;
use super::explain::{Choice, Weighed};
use crate::config::LimitFlags;
use crate::scheduler_view::{Forecast, SchedulerView};

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
        bootstrap: BootstrapAddress,
        /// What was predicted, by a policy that predicts.
        forecast: Option<Forecast>,
        /// The data-parallel ranks that it is for, where engines let themselves be steered.
        ranks: Pair<Option<RankAssignment>>,
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

/// Places that were taken, before anybody was told: plain data and leases.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a box would be allocated under the lock")]
pub(crate) enum Taken {
    Pair { leases: Pair<Lease>, places: Pair<Place>, meet: SocketAddr, chosen: Chosen },
    One(Lease),
}

/// Memory for the candidates of a choice, used again for the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    prefill: Vec<Candidate>,
    decode: Vec<Candidate>,
}

/// How places are given.
pub(crate) struct Seating<'a> {
    pub pool: &'a Pool,
    pub ask: &'a Ask,
    pub view: &'a SchedulerView,
    pub draw: Draw,
    pub limits: &'a LimitFlags,
    pub patience: AgentTrust,
}

impl Seating<'_> {
    /// Takes places for the request, or says why there are none. It runs under a lock, and where
    /// `scratch` is large enough it allocates nothing.
    pub(crate) fn take(
        &self,
        released: &OnRelease,
        scratch: &mut Scratch,
    ) -> Result<Taken, NoSeat> {
        let serving = || self.pool.serving(self.ask.model.as_deref());
        let count = serving().count();
        if count == 0 {
            return Err(match self.pool.compatible_sets.is_empty() {
                true => NoSeat::Nobody,
                false => NoSeat::NoModel,
            });
        }
        // A rollout mixes sets that do not fit each other: those of the best health, beginning at
        // a random one.
        let rank = |fit: &CompatibleSet| if count > 1 { self.fit_rank(fit) } else { Some(0) };
        let best = serving().filter_map(rank).min().ok_or(NoSeat::Nobody)?;
        let start = self.draw.turn as usize % count;
        let from_start = serving().skip(start).chain(serving().take(start));
        let mut answer = NoSeat::Nobody;
        for fit in from_start.filter(|fit| rank(fit) == Some(best)) {
            match self.in_fit(fit, released, scratch) {
                Err(NoSeat::Full) => answer = NoSeat::Full,
                Err(_) => {}
                taken => return taken,
            }
        }
        Err(answer)
    }

    /// What follows from places that were taken, when others may take theirs again.
    pub(crate) fn seats(&self, taken: Taken) -> Seats {
        match taken {
            Taken::One(lease) => Seats::One(lease),
            Taken::Pair { leases, places, meet, chosen } => {
                let forecast = self.view.forecast(self.pool, &chosen, leases.prefill.worker());
                self.learn(&chosen, places.prefill);
                Seats::Pair {
                    bootstrap: BootstrapAddress::new(meet.ip(), meet.port()),
                    ranks: places.map(|place| self.steered(place)),
                    choice: self.explained(&chosen),
                    leases,
                    forecast,
                }
            }
        }
    }

    /// How well the best pair of a set is, or its best single worker; `None`: nobody is ready.
    fn fit_rank(&self, fit: &CompatibleSet) -> Option<u8> {
        let best = |seats| self.ready(seats).map(|(_, member)| self.rank(member)).min();
        match self.pool.profile {
            Profile::Pd => Some(best(&fit.prefill)?.max(best(&fit.decode)?)),
            Profile::Single => best(&fit.unified),
        }
    }

    fn in_fit(
        &self,
        fit: &CompatibleSet,
        released: &OnRelease,
        scratch: &mut Scratch,
    ) -> Result<Taken, NoSeat> {
        match self.pool.profile {
            Profile::Pd => {
                let chosen = self.pair(fit, scratch)?;
                let places = self.reconciled(chosen.pair.map(Place::of_id));
                let meet = self.pool.members[places.prefill.member].bootstrap;
                let meet = meet.ok_or(NoSeat::Nobody)?;
                let work = chosen.estimate.map(|estimate| estimate.work_bytes as u64);
                let weight = self.ask.weight;
                let of_prefill =
                    Weight { prompt_bytes: work.unwrap_or(weight.prompt_bytes), ..weight };
                let prefill =
                    self.lease(places.prefill, of_prefill, released).ok_or(NoSeat::Full)?;
                match self.lease(places.decode, weight, released) {
                    Some(decode) => {
                        Ok(Taken::Pair { leases: Pair { prefill, decode }, places, meet, chosen })
                    }
                    // Filled since it was looked at. The line is locked here, so that a lease
                    // that tells of its end would wait for itself.
                    None => {
                        let worker = Arc::clone(prefill.worker());
                        prefill.cancel();
                        worker.lease_history.record(self.view.clock.now_ms(), worker.usage());
                        Err(NoSeat::Full)
                    }
                }
            }
            Profile::Single => {
                let all = &mut scratch.prefill;
                self.gather(&fit.unified, self.order(fit.unified.len(), self.draw, []), all)?;
                let chosen = self.view.policy.pick(all, self.draw).ok_or(NoSeat::Full)?;
                let lease = self.lease(Place::of_id(chosen), self.ask.weight, released);
                lease.map(Taken::One).ok_or(NoSeat::Full)
            }
        }
    }

    /// The pair of a set that takes the request.
    fn pair(&self, fit: &CompatibleSet, scratch: &mut Scratch) -> Result<Chosen, NoSeat> {
        let Weight { prompt_bytes, kv_tokens, .. } = self.ask.weight;
        let prefix_match = self.view.prefixes().lookup(&self.ask.blocks);
        let prefix_key = schedule::prefix_key(&self.ask.blocks);
        let demand = schedule::Demand { prompt_bytes, kv_tokens, prefix_match, prefix_key };
        let could = |cache| fit.holder(cache).is_some_and(|at| self.is_ready(fit.prefill[at]));
        let rendezvous = demand.rendezvous(fit.caches.iter().map(|(cache, _)| *cache), could);
        let first =
            demand.prefix_match.holders().chain(rendezvous).filter_map(|cache| fit.holder(cache));
        let Scratch { prefill, decode } = scratch;
        self.gather(&fit.prefill, self.order(fit.prefill.len(), self.draw, first), prefill)?;
        let draw = self.draw.second();
        self.gather(&fit.decode, self.order(fit.decode.len(), draw, []), decode)?;
        let links = self.view.links();
        let input = ChoiceInput {
            demand,
            links: Some(&links),
            assumptions: &self.view.assumptions,
            objective: self.view.aim,
            now_ms: self.view.clock.now_ms(),
            ..ChoiceInput::of(prefill, decode, draw.second())
        };
        schedule::choose(self.view.policy, &input).ok_or(NoSeat::Full)
    }

    fn lease(&self, place: Place, weight: Weight, released: &OnRelease) -> Option<Lease> {
        let member = &self.pool.members[place.member];
        let worker = &member.worker;
        let released = Some(Arc::clone(released));
        let lease = worker.try_lease(weight, self.limits_of(member), released)?;
        worker.lease_history.record(self.view.clock.now_ms(), worker.usage());
        Some(lease.at_rank(place.rank))
    }

    fn steered(&self, Place { member, rank }: Place) -> Option<RankAssignment> {
        Some(RankAssignment { ranks: self.pool.members[member].ranks()?, rank: rank? })
    }

    /// The prompt is sent: its prefill has it from now on.
    fn learn(&self, chosen: &Chosen, place: Place) {
        let Some(Estimate { work_bytes, .. }) = chosen.estimate else { return };
        let worker = &self.pool.members[place.member].worker;
        let rank = place.rank.unwrap_or(0);
        let cache = cache_of(worker.identity, rank);
        if !self.ask.blocks.is_empty() {
            self.view.prefixes().insert(cache, &self.ask.blocks);
        }
        let Weight { prompt_bytes, kv_tokens, .. } = self.ask.weight;
        let now_ms = self.view.clock.now_ms();
        let (tokens, bytes) = (kv_tokens as f32, prompt_bytes as f32);
        self.pool.rate_estimators.on_request(tokens, bytes, work_bytes, now_ms);
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
        let meets = |rank: &u32| mine.ranks.meet(*rank, &theirs.ranks, theirs.rank);
        if meets(&mine.rank) {
            return places;
        }
        let worker = &self.pool.members[places.prefill.member].worker;
        let rank = (0..mine.ranks.count)
            .filter(meets)
            .min_by_key(|rank| worker.usage_of_rank(*rank).prompt_bytes);
        Pair { prefill: Place { rank, ..places.prefill }, ..places }
    }
}
