//! [`Simulation`]: the modelled fleet, event by event.
//!
//! A request proceeds as in SGLang: decode reserves capacity for it; prefill computes it chunk by chunk,
//! sends the KV cache along and answers when the last of it is sent; the stream starts with the next
//! step of decode.

use std::collections::BinaryHeap;

use crate::FleetSetup;
use crate::contender::{Contender, InfoSource};
use crate::decode::{DecodeModel, WaitingRequest};
use crate::event::{Event, ScheduledEvent};
use crate::gateway_model::{BYTES_PER_TOKEN, GatewayModel, NotSent, PromptRequest, SentRequest};
use crate::history::TICK_MS;
use crate::network::Network;
use crate::observed::{ObservedWorker, ObservedWorkers};
use crate::oracle::TrueState;
use crate::prefill::PrefillModel;
use crate::random::Random;
use crate::trace::TraceRequest;
use router_core::pair::Pair;

/// The progress of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestStage {
    Unsent,
    Prefilling,
    Decoding,
    Finished,
    Failed,
}

/// One request and its result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SimulatedRequest {
    pub(crate) stage: RequestStage,
    pub(crate) gateway: usize,
    pub(crate) bytes: u64,
    pub(crate) pair: Pair<usize>,
    pub(crate) sent: Option<SentRequest>,
    pub(crate) cached: u32,
    pub(crate) first_ms: f64,
    pub(crate) end_ms: f64,
}

pub(crate) struct Simulation<'a> {
    pub(crate) setup: &'a FleetSetup,
    pub(crate) arrivals: &'a [TraceRequest],
    pub(crate) source: InfoSource,
    pub(crate) now: f64,
    pub(crate) order: u64,
    pub(crate) events: BinaryHeap<ScheduledEvent>,
    pub(crate) requests: Vec<SimulatedRequest>,
    pub(crate) prefills: Vec<PrefillModel>,
    pub(crate) decodes: Vec<DecodeModel>,
    pub(crate) decode_of: Vec<usize>,
    pub(crate) network: Network,
    pub(crate) gateways: Vec<GatewayModel>,
    /// Whether a poll is scheduled for the waiting requests of a gateway.
    pub(crate) polling: Vec<bool>,
    pub(crate) observed: ObservedWorkers,
    /// Requests at each worker whose response has not ended, and their bytes.
    pub(crate) outstanding: Vec<(u64, u64)>,
    pub(crate) dead: Vec<bool>,
}

impl<'a> Simulation<'a> {
    pub(crate) fn new(
        setup: &'a FleetSetup,
        arrivals: &'a [TraceRequest],
        contender: Contender,
        seed: u64,
    ) -> Simulation<'a> {
        let FleetSetup { engine, prefills, decodes, .. } = setup;
        let workers = prefills + decodes;
        let mut random = Random::new(seed, 4);
        let perturbation = setup.perturbation;
        let requests = arrivals.iter().map(|arrival| {
            // The bytes per token depend on the language of the prompt.
            let key = router_core::schedule::prefix_key(&arrival.blocks);
            let of_conversation = Random::new(seed ^ key, 7).normal() * perturbation.conversation;
            let bytes_per_token =
                BYTES_PER_TOKEN * (perturbation.bytes * random.normal() + of_conversation).exp();
            SimulatedRequest {
                stage: RequestStage::Unsent,
                gateway: random.below(setup.gateways),
                bytes: (f64::from(arrival.input_tokens) * bytes_per_token) as u64,
                pair: Pair::default(),
                sent: None,
                cached: 0,
                first_ms: 0.0,
                end_ms: 0.0,
            }
        });
        let gateway = |number| GatewayModel::new(contender, setup, seed, number);
        let mut simulation = Simulation {
            setup,
            arrivals,
            source: contender.source,
            now: 0.0,
            order: 0,
            events: BinaryHeap::new(),
            requests: requests.collect(),
            prefills: (0..*prefills).map(|_| PrefillModel::new(engine)).collect(),
            decodes: (0..*decodes).map(|_| DecodeModel::new()).collect(),
            decode_of: vec![usize::MAX; arrivals.len()],
            network: Network::new(*prefills, *decodes, engine.nic_bytes_per_ms),
            gateways: (0..setup.gateways as u64).map(gateway).collect(),
            polling: vec![false; setup.gateways],
            observed: ObservedWorkers::new(workers, setup.report_age_ms),
            outstanding: vec![(0, 0); workers],
            dead: vec![false; workers],
        };
        let mut speed = Random::new(seed, 6);
        let mut slowness = || (perturbation.engines * speed.normal()).exp();
        simulation.prefills.iter_mut().for_each(|engine| engine.slowness = slowness());
        simulation.decodes.iter_mut().for_each(|engine| engine.slowness = slowness());
        simulation.schedule_arrivals();
        simulation
    }

    /// Runs until no event is left.
    pub(crate) fn run(&mut self) {
        while let Some(ScheduledEvent { at_ms, event, .. }) = self.events.pop() {
            self.now = at_ms;
            self.handle(event);
        }
    }

    fn schedule_arrivals(&mut self) {
        let span = self.arrivals.last().map_or(0.0, |arrival| arrival.at_ms);
        for (number, fault) in self.setup.faults.iter().enumerate() {
            self.schedule(fault.from * span, Event::FaultStarted(number));
            if fault.until < 1.0 {
                self.schedule(fault.until * span, Event::FaultEnded(number));
            }
        }
        for (request, arrival) in self.arrivals.iter().enumerate() {
            self.schedule(arrival.at_ms, Event::RequestArrived(request));
        }
        (0..self.outstanding.len()).for_each(|worker| self.publish_observation(worker));
    }

    fn schedule(&mut self, at_ms: f64, event: Event) {
        self.order += 1;
        self.events.push(ScheduledEvent { at_ms, order: self.order, event });
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::RequestArrived(request) if self.source == InfoSource::Truth => {
                self.by_oracle(request)
            }
            Event::RequestArrived(request) => {
                let gateway = self.requests[request].gateway;
                self.gateways[gateway].waiting.push_back(request);
                self.send_waiting(gateway);
            }
            Event::PrefillIterationEnded(prefill) => self.prefilled(prefill),
            Event::DecodeStepEnded(decode) => self.step(decode),
            Event::TransferEnded(version) if version == self.network.version => {
                self.advance_network()
            }
            Event::TransferEnded(_) => {}
            Event::TransferReported { request, bytes, ms } => {
                let SimulatedRequest { pair, bytes: prompt, .. } = self.requests[request];
                for gateway in &mut self.gateways {
                    gateway.on_transfer_report(
                        pair,
                        prompt as f32,
                        bytes as f32,
                        ms as f32,
                        self.now,
                    );
                }
            }
            Event::QueuePolled(gateway) => {
                self.polling[gateway] = false;
                self.send_waiting(gateway);
            }
            Event::FaultStarted(fault) => self.fault(self.setup.faults[fault], true),
            Event::FaultEnded(fault) => self.fault(self.setup.faults[fault], false),
        }
    }

    fn by_oracle(&mut self, request: usize) {
        let truth = TrueState {
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
            None => self.requests[request].stage = RequestStage::Failed,
        }
    }

    /// Sends the waiting requests of a gateway in order, while there is capacity.
    pub(crate) fn send_waiting(&mut self, gateway: usize) {
        while let Some(&request) = self.gateways[gateway].waiting.front() {
            let SimulatedRequest { bytes, .. } = self.requests[request];
            let TraceRequest { at_ms, blocks, .. } = &self.arrivals[request];
            let prompt = PromptRequest { bytes, blocks, waited_ms: self.now - at_ms };
            let sent = match self.gateways[gateway].send(prompt, &self.observed, self.now) {
                Err(NotSent::Full) => return self.poll_later(gateway),
                sent => sent.ok(),
            };
            self.gateways[gateway].waiting.pop_front();
            self.requests[request].sent = sent;
            match sent {
                Some(sent) => self.place(request, sent.pair),
                None => self.requests[request].stage = RequestStage::Failed,
            }
        }
    }

    /// Schedules a check, since only frames and polls show capacity that other gateways free.
    fn poll_later(&mut self, gateway: usize) {
        if !std::mem::replace(&mut self.polling[gateway], true) {
            self.schedule(self.now + TICK_MS, Event::QueuePolled(gateway));
        }
    }

    fn place(&mut self, request: usize, pair: Pair<usize>) {
        let decode = pair.decode - self.prefills.len();
        let input = self.arrivals[request].input_tokens;
        let bytes = self.requests[request].bytes;
        self.requests[request].pair = pair;
        self.requests[request].stage = RequestStage::Prefilling;
        self.decode_of[request] = decode;
        for worker in [pair.prefill, pair.decode] {
            self.outstanding[worker].0 += 1;
            self.outstanding[worker].1 += bytes;
        }
        self.prefills[pair.prefill].push(request, input);
        self.decodes[decode].queue.push_back(WaitingRequest { request, input });
        self.admit(decode);
        self.publish_observation(pair.prefill);
        self.publish_observation(pair.decode);
    }

    pub(crate) fn admit(&mut self, decode: usize) {
        for request in self.decodes[decode].admit(&self.setup.engine) {
            let prefill = self.requests[request].pair.prefill;
            self.prefills[prefill].admit(request);
            self.start(prefill);
        }
    }

    fn start(&mut self, prefill: usize) {
        let ends_ms = self.prefills[prefill].start(&self.setup.engine, self.arrivals, self.now);
        if let Some(ends_ms) = ends_ms {
            self.schedule(ends_ms, Event::PrefillIterationEnded(prefill));
        }
    }

    fn prefilled(&mut self, prefill: usize) {
        if self.prefills[prefill].ends_ms != Some(self.now) {
            return;
        }
        self.advance_network();
        for chunk in self.prefills[prefill].finish(self.arrivals) {
            let request = &mut self.requests[chunk.request];
            if request.stage != RequestStage::Prefilling {
                continue;
            }
            request.cached += chunk.cached;
            let bytes = f64::from(chunk.tokens) * self.setup.engine.kv_bytes_per_token;
            let path = (prefill, self.decode_of[chunk.request]);
            self.network.send(chunk.request, path, bytes, chunk.last);
        }
        self.reshare_network();
        self.start(prefill);
    }

    /// Advances the network to the current time.
    pub(crate) fn advance_network(&mut self) {
        for transfer in self.network.advance(self.now) {
            let report = Event::TransferReported {
                request: transfer.request,
                bytes: transfer.sent_bytes,
                ms: transfer.active_ms.max(0.001),
            };
            self.schedule(self.now + self.setup.report_age_ms, report);
            self.arrived(transfer.request);
        }
        self.reshare_network();
    }

    pub(crate) fn reshare_network(&mut self) {
        if let Some(next) = self.network.share() {
            self.schedule(next, Event::TransferEnded(self.network.version));
        }
        (0..self.outstanding.len()).for_each(|worker| self.publish_observation(worker));
    }

    fn arrived(&mut self, request: usize) {
        let SimulatedRequest { pair, gateway, sent, bytes, .. } = self.requests[request];
        self.requests[request].stage = RequestStage::Decoding;
        self.outstanding[pair.prefill].0 -= 1;
        self.outstanding[pair.prefill].1 -= bytes;
        if let Some(sent) = sent {
            self.gateways[gateway].on_prefilled(&sent, self.now);
        }
        let decode = self.decode_of[request];
        let TraceRequest { input_tokens, output_tokens, .. } = self.arrivals[request];
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
            self.schedule(ends_ms, Event::DecodeStepEnded(decode));
        }
        for &request in &stepped.finished {
            self.finished(request);
        }
        if !stepped.finished.is_empty() {
            self.admit(decode);
        }
        self.publish_observation(self.prefills.len() + decode);
    }

    fn finished(&mut self, number: usize) {
        let tokens = self.arrivals[number].output_tokens;
        let request = &mut self.requests[number];
        request.stage = RequestStage::Finished;
        request.end_ms = self.now;
        let itl_ms = (self.now - request.first_ms) / f64::from(tokens.max(2) - 1);
        self.outstanding[request.pair.decode].0 -= 1;
        self.outstanding[request.pair.decode].1 -= request.bytes;
        if let Some(sent) = request.sent {
            let gateway = request.gateway;
            self.gateways[gateway].on_response(&sent, tokens, itl_ms, self.now);
            self.send_waiting(gateway);
        }
    }

    fn publish_observation(&mut self, worker: usize) {
        let (requests, bytes) = self.outstanding[worker];
        let at = worker.checked_sub(self.prefills.len());
        let observed_worker = match at {
            None => ObservedWorker {
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
                ObservedWorker {
                    waiting_bytes: 0.0,
                    itl_ms: if decode.stepping { decode.step_ms } else { 0.0 },
                    free: self.network.rx_free[at],
                    kv: self.network.rx_rate(at),
                    tokens: decode.used + queued,
                    requests: requests as f64,
                }
            }
        };
        self.observed.set(worker, self.now, observed_worker);
    }
}
