//! Harm: how a [`Trouble`] begins and ends, and what a death takes with it.

use crate::decode::Decode;
use crate::trouble::{Kind, Trouble};
use crate::world::{Request, Stage, World};

impl World<'_> {
    pub(crate) fn trouble(&mut self, trouble: Trouble, begins: bool) {
        let nic = self.setup.engine.nic_bytes_per_ms;
        let first = self.prefills.len();
        match trouble.kind {
            Kind::Slow { worker, times } => {
                let slowness = if begins { times } else { 1.0 };
                match worker.checked_sub(first) {
                    None => self.prefills[worker].slowness = slowness,
                    Some(at) => self.decodes[at].slowness = slowness,
                }
            }
            Kind::Busy { worker, share } => {
                self.moved();
                let free = if begins { nic * (1.0 - share) } else { nic };
                match worker.checked_sub(first) {
                    None => self.network.tx_free[worker] = free,
                    Some(at) => self.network.rx_free[at] = free,
                }
                self.share();
            }
            Kind::Path { prefill, decode, share } => {
                self.moved();
                let at = decode.saturating_sub(first);
                self.network.slow_pairs.retain(|path| (path.0, path.1) != (prefill, at));
                if begins {
                    self.network.slow_pairs.push((prefill, at, nic * share));
                }
                self.share();
            }
            Kind::Dies { worker } if begins => self.die(worker),
            Kind::Dies { .. } => {}
        }
    }

    /// Everything that the worker holds fails; nobody sends to it any more.
    fn die(&mut self, worker: usize) {
        self.moved();
        self.dead[worker] = true;
        for gateway in &mut self.gateways {
            gateway.lost(worker);
        }
        let failed: Vec<usize> = (0..self.requests.len())
            .filter(|&number| {
                let Request { stage, pair, .. } = self.requests[number];
                let prefilling = stage == Stage::Prefilling;
                (prefilling && pair.prefill == worker)
                    || ((prefilling || stage == Stage::Decoding) && pair.decode == worker)
            })
            .collect();
        for &number in &failed {
            self.fail(number);
        }
        self.network.cut(|request| failed.contains(&request));
        match worker.checked_sub(self.prefills.len()) {
            None => drop(self.prefills[worker].die()),
            Some(at) => self.decodes[at] = Decode::new(),
        }
        self.share();
        (0..self.gateways.len()).for_each(|gateway| self.seat(gateway));
        for decode in 0..self.decodes.len() {
            self.admit(decode);
        }
    }

    fn fail(&mut self, number: usize) {
        let Request { stage, pair, gateway, bytes, sent, .. } = self.requests[number];
        self.requests[number].stage = Stage::Failed;
        let prefilling = stage == Stage::Prefilling;
        if prefilling {
            self.prefills[pair.prefill].queue.retain(|job| job.request != number);
            let input = self.arrivals[number].input_tokens;
            self.decodes[self.decode_of[number]].abandon(&self.setup.engine, number, input);
            self.held[pair.prefill].0 -= 1;
            self.held[pair.prefill].1 -= bytes;
        }
        self.held[pair.decode].0 -= 1;
        self.held[pair.decode].1 -= bytes;
        if let Some(sent) = sent {
            self.gateways[gateway].failed(&sent, !prefilling, self.now);
        }
    }
}
