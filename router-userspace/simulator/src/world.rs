//! [`World`]: the modelled fleet, event by event.
//!
//! A request goes as in SGLang: decode keeps room for it, prefill computes it chunk by chunk and
//! sends the KV cache along, prefill answers when the last of it is sent, the stream begins with
//! decode's next step.

use std::collections::BinaryHeap;

use crate::Setup;
use crate::chance::Chance;
use crate::contender::{Contender, Way};
use crate::decode::{Decode, Waiting};
use crate::event::{Event, Timed};
use crate::gateway::{BYTES_PER_TOKEN, Gateway, Prompt, Sent, Unsent};
use crate::history::TICK_MS;
use crate::network::Network;
use crate::oracle::Truth;
use crate::prefill::Prefill;
use crate::trace::Arrival;
use crate::view::{View, Views};
use router_core::pair::Pair;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Unsent,
    Prefilling,
    Decoding,
    Finished,
    Failed,
}

/// One request and what became of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) stage: Stage,
    pub(crate) gateway: usize,
    pub(crate) bytes: u64,
    pub(crate) pair: Pair<usize>,
    pub(crate) sent: Option<Sent>,
    pub(crate) cached: u32,
    pub(crate) first_ms: f64,
    pub(crate) end_ms: f64,
}

pub(crate) struct World<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) arrivals: &'a [Arrival],
    pub(crate) way: Way,
    pub(crate) now: f64,
    pub(crate) order: u64,
    pub(crate) events: BinaryHeap<Timed>,
    pub(crate) requests: Vec<Request>,
    pub(crate) prefills: Vec<Prefill>,
    pub(crate) decodes: Vec<Decode>,
    pub(crate) decode_of: Vec<usize>,
    pub(crate) network: Network,
    pub(crate) gateways: Vec<Gateway>,
    /// Whether those who wait at a gateway look again soon.
    pub(crate) looking: Vec<bool>,
    pub(crate) views: Views,
    /// Requests at each worker whose answer has not ended, and the bytes of those.
    pub(crate) held: Vec<(u64, u64)>,
    pub(crate) dead: Vec<bool>,
}

impl<'a> World<'a> {
    pub(crate) fn new(
        setup: &'a Setup,
        arrivals: &'a [Arrival],
        contender: Contender,
        seed: u64,
    ) -> World<'a> {
        let Setup { engine, prefills, decodes, .. } = setup;
        let workers = prefills + decodes;
        let mut chance = Chance::new(seed, 4);
        let requests = arrivals.iter().map(|arrival| {
            // How many bytes a token takes depends on the language of the prompt.
            let bytes_per_token = BYTES_PER_TOKEN * (0.15 * chance.normal()).exp();
            Request {
                stage: Stage::Unsent,
                gateway: chance.below(setup.gateways),
                bytes: (f64::from(arrival.input_tokens) * bytes_per_token) as u64,
                pair: Pair::default(),
                sent: None,
                cached: 0,
                first_ms: 0.0,
                end_ms: 0.0,
            }
        });
        let fleet = (*prefills, *decodes);
        let gateway = |number| Gateway::new(contender, engine, fleet, seed, number);
        let mut world = World {
            setup,
            arrivals,
            way: contender.way,
            now: 0.0,
            order: 0,
            events: BinaryHeap::new(),
            requests: requests.collect(),
            prefills: (0..*prefills).map(|_| Prefill::new(engine)).collect(),
            decodes: (0..*decodes).map(|_| Decode::new()).collect(),
            decode_of: vec![usize::MAX; arrivals.len()],
            network: Network::new(*prefills, *decodes, engine.nic_bytes_per_ms),
            gateways: (0..setup.gateways as u64).map(gateway).collect(),
            looking: vec![false; setup.gateways],
            views: Views::new(workers, setup.report_age_ms),
            held: vec![(0, 0); workers],
            dead: vec![false; workers],
        };
        world.plan();
        world
    }

    /// Runs until nothing is left to happen.
    pub(crate) fn run(&mut self) {
        while let Some(Timed { at_ms, event, .. }) = self.events.pop() {
            self.now = at_ms;
            self.happen(event);
        }
    }

    fn plan(&mut self) {
        let span = self.arrivals.last().map_or(0.0, |arrival| arrival.at_ms);
        for (number, trouble) in self.setup.troubles.iter().enumerate() {
            self.at(trouble.from * span, Event::Begins(number));
            if trouble.until < 1.0 {
                self.at(trouble.until * span, Event::Ends(number));
            }
        }
        for (request, arrival) in self.arrivals.iter().enumerate() {
            self.at(arrival.at_ms, Event::Arrives(request));
        }
        (0..self.held.len()).for_each(|worker| self.show(worker));
    }

    fn at(&mut self, at_ms: f64, event: Event) {
        self.order += 1;
        self.events.push(Timed { at_ms, order: self.order, event });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrives(request) if self.way == Way::Oracle => self.by_oracle(request),
            Event::Arrives(request) => {
                let gateway = self.requests[request].gateway;
                self.gateways[gateway].waiting.push_back(request);
                self.seat(gateway);
            }
            Event::Prefilled(prefill) => self.prefilled(prefill),
            Event::Stepped(decode) => self.step(decode),
            Event::Moved(version) if version == self.network.version => self.moved(),
            Event::Moved(_) => {}
            Event::Heard { request, bytes, ms } => {
                let Request { pair, bytes: prompt, .. } = self.requests[request];
                for gateway in &mut self.gateways {
                    gateway.heard(pair, prompt as f32, bytes as f32, ms as f32, self.now);
                }
            }
            Event::Looks(gateway) => {
                self.looking[gateway] = false;
                self.seat(gateway);
            }
            Event::Begins(trouble) => self.trouble(self.setup.troubles[trouble], true),
            Event::Ends(trouble) => self.trouble(self.setup.troubles[trouble], false),
        }
    }

    fn by_oracle(&mut self, request: usize) {
        let truth = Truth {
            engine: &self.setup.engine,
            arrivals: self.arrivals,
            prefills: &self.prefills,
            decodes: &self.decodes,
            network: &self.network,
            dead: &self.dead,
            decode_of: &self.decode_of,
            now: self.now,
        };
        match truth.choose(&self.arrivals[request]) {
            Some(pair) => {
                let decode = pair.decode + self.prefills.len();
                self.place(request, Pair { decode, ..pair });
            }
            None => self.requests[request].stage = Stage::Failed,
        }
    }

    /// Sends those who wait at a gateway, in order, as long as there is room.
    pub(crate) fn seat(&mut self, gateway: usize) {
        while let Some(&request) = self.gateways[gateway].waiting.front() {
            let Request { bytes, .. } = self.requests[request];
            let Arrival { at_ms, blocks, .. } = &self.arrivals[request];
            let prompt = Prompt { bytes, blocks, waited_ms: self.now - at_ms };
            let sent = match self.gateways[gateway].send(prompt, &self.views, self.now) {
                Err(Unsent::Full) => return self.look_again(gateway),
                sent => sent.ok(),
            };
            self.gateways[gateway].waiting.pop_front();
            self.requests[request].sent = sent;
            match sent {
                Some(sent) => self.place(request, sent.pair),
                None => self.requests[request].stage = Stage::Failed,
            }
        }
    }

    /// Room that others leave is told by frames and polls alone.
    fn look_again(&mut self, gateway: usize) {
        if !std::mem::replace(&mut self.looking[gateway], true) {
            self.at(self.now + TICK_MS, Event::Looks(gateway));
        }
    }

    fn place(&mut self, request: usize, pair: Pair<usize>) {
        let decode = pair.decode - self.prefills.len();
        let input = self.arrivals[request].input_tokens;
        let bytes = self.requests[request].bytes;
        self.requests[request].pair = pair;
        self.requests[request].stage = Stage::Prefilling;
        self.decode_of[request] = decode;
        for worker in [pair.prefill, pair.decode] {
            self.held[worker].0 += 1;
            self.held[worker].1 += bytes;
        }
        self.prefills[pair.prefill].push(request, input);
        self.decodes[decode].queue.push_back(Waiting { request, input });
        self.admit(decode);
        self.show(pair.prefill);
        self.show(pair.decode);
    }

    pub(crate) fn admit(&mut self, decode: usize) {
        for request in self.decodes[decode].admit(&self.setup.engine) {
            let prefill = self.requests[request].pair.prefill;
            self.prefills[prefill].admit(request);
            self.begin(prefill);
        }
    }

    fn begin(&mut self, prefill: usize) {
        let begun = self.prefills[prefill].begin(&self.setup.engine, self.arrivals, self.now);
        if let Some(ends_ms) = begun {
            self.at(ends_ms, Event::Prefilled(prefill));
        }
    }

    fn prefilled(&mut self, prefill: usize) {
        if self.prefills[prefill].ends_ms != Some(self.now) {
            return;
        }
        self.moved();
        for piece in self.prefills[prefill].end(self.arrivals) {
            let request = &mut self.requests[piece.request];
            if request.stage != Stage::Prefilling {
                continue;
            }
            request.cached += piece.cached;
            let bytes = f64::from(piece.tokens) * self.setup.engine.kv_bytes_per_token;
            let path = (prefill, self.decode_of[piece.request]);
            self.network.send(piece.request, path, bytes, piece.last);
        }
        self.share();
        self.begin(prefill);
    }

    /// Lets the network catch up with the time.
    pub(crate) fn moved(&mut self) {
        for flow in self.network.advance(self.now) {
            let heard = Event::Heard {
                request: flow.request,
                bytes: flow.sent_bytes,
                ms: flow.active_ms.max(0.001),
            };
            self.at(self.now + self.setup.report_age_ms, heard);
            self.arrived(flow.request);
        }
        self.share();
    }

    pub(crate) fn share(&mut self) {
        if let Some(next) = self.network.share() {
            self.at(next, Event::Moved(self.network.version));
        }
        (0..self.held.len()).for_each(|worker| self.show(worker));
    }

    fn arrived(&mut self, request: usize) {
        let Request { pair, gateway, sent, bytes, .. } = self.requests[request];
        self.requests[request].stage = Stage::Decoding;
        self.held[pair.prefill].0 -= 1;
        self.held[pair.prefill].1 -= bytes;
        if let Some(sent) = sent {
            self.gateways[gateway].prefilled(&sent, self.now);
        }
        let decode = self.decode_of[request];
        let Arrival { input_tokens, output_tokens, .. } = self.arrivals[request];
        self.decodes[decode].arrived(&self.setup.engine, request, input_tokens, output_tokens);
        if !self.decodes[decode].stepping {
            self.step(decode);
        }
    }

    fn step(&mut self, decode: usize) {
        if self.dead[self.prefills.len() + decode] {
            return;
        }
        let stepped = self.decodes[decode].step(&self.setup.engine, self.now);
        for request in stepped.first {
            self.requests[request].first_ms = self.now;
        }
        if let Some(ends_ms) = stepped.ends_ms {
            self.at(ends_ms, Event::Stepped(decode));
        }
        for &request in &stepped.finished {
            self.finished(request);
        }
        if !stepped.finished.is_empty() {
            self.admit(decode);
        }
        self.show(self.prefills.len() + decode);
    }

    fn finished(&mut self, number: usize) {
        let tokens = self.arrivals[number].output_tokens;
        let request = &mut self.requests[number];
        request.stage = Stage::Finished;
        request.end_ms = self.now;
        let itl_ms = (self.now - request.first_ms) / f64::from(tokens.max(2) - 1);
        self.held[request.pair.decode].0 -= 1;
        self.held[request.pair.decode].1 -= request.bytes;
        if let Some(sent) = request.sent {
            let gateway = request.gateway;
            self.gateways[gateway].answered(&sent, tokens, itl_ms, self.now);
            self.seat(gateway);
        }
    }

    fn show(&mut self, worker: usize) {
        let (requests, bytes) = self.held[worker];
        let at = worker.checked_sub(self.prefills.len());
        let view = match at {
            None => View {
                waiting_bytes: bytes as f64,
                itl_ms: 0.0,
                free: self.network.tx_free[worker],
                kv: self.network.tx_rate(worker),
                tokens: self.prefills[worker].tokens(),
                requests: requests as f64,
            },
            Some(at) => {
                let decode = &self.decodes[at];
                let queued: u64 = decode.queue.iter().map(|next| u64::from(next.input)).sum();
                View {
                    waiting_bytes: 0.0,
                    itl_ms: if decode.stepping { decode.step_ms } else { 0.0 },
                    free: self.network.rx_free[at],
                    kv: self.network.rx_rate(at),
                    tokens: decode.used + queued,
                    requests: requests as f64,
                }
            }
        };
        self.views.set(worker, self.now, view);
    }
}
