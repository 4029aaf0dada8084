//! Applies an [`InjectedFault`] to a simulation when it starts and ends.

use crate::decode::DecodeModel;
use crate::fault::{FaultEffect, InjectedFault};
use crate::simulation::{RequestStage, SimulatedRequest, Simulation};

impl Simulation<'_> {
    pub(crate) fn fault(&mut self, fault: InjectedFault, starts: bool) {
        let nic = self.setup.engine.nic_bytes_per_ms;
        let first = self.prefills.len();
        match fault.effect {
            FaultEffect::Slow { worker, times } => {
                // An engine has a speed of its own, and may have several faults.
                let factor = if starts { times } else { 1.0 / times };
                match worker.checked_sub(first) {
                    None => self.prefills[worker].slowness *= factor,
                    Some(at) => self.decodes[at].slowness *= factor,
                }
            }
            FaultEffect::Busy { worker, share } => {
                self.advance_network();
                let free = if starts { nic * (1.0 - share) } else { nic };
                match worker.checked_sub(first) {
                    None => self.network.tx_free[worker] = free,
                    Some(at) => self.network.rx_free[at] = free,
                }
                self.reshare_network();
            }
            FaultEffect::Path { prefill, decode, share } => {
                self.advance_network();
                let at = decode.saturating_sub(first);
                self.network.slow_pairs.retain(|path| (path.0, path.1) != (prefill, at));
                if starts {
                    self.network.slow_pairs.push((prefill, at, nic * share));
                }
                self.reshare_network();
            }
            FaultEffect::Dies { worker } if starts => self.die(worker),
            FaultEffect::Dies { .. } => {}
        }
    }

    /// Fails all requests on the worker. Gateways send it no further requests.
    fn die(&mut self, worker: usize) {
        self.advance_network();
        self.dead[worker] = true;
        for gateway in &mut self.gateways {
            gateway.on_worker_lost(worker);
        }
        let failed: Vec<usize> = (0..self.requests.len())
            .filter(|&number| {
                let SimulatedRequest { stage, pair, .. } = self.requests[number];
                let prefilling = stage == RequestStage::Prefilling;
                (prefilling && pair.prefill == worker)
                    || ((prefilling || stage == RequestStage::Decoding) && pair.decode == worker)
            })
            .collect();
        for &number in &failed {
            self.fail(number);
        }
        self.network.remove(|request| failed.contains(&request));
        match worker.checked_sub(self.prefills.len()) {
            None => drop(self.prefills[worker].die()),
            Some(at) => self.decodes[at] = DecodeModel::new(),
        }
        self.reshare_network();
        (0..self.gateways.len()).for_each(|gateway| self.send_waiting(gateway));
        for decode in 0..self.decodes.len() {
            self.admit(decode);
        }
    }

    fn fail(&mut self, number: usize) {
        let SimulatedRequest { stage, pair, gateway, bytes, sent, .. } = self.requests[number];
        self.requests[number].stage = RequestStage::Failed;
        let prefilling = stage == RequestStage::Prefilling;
        if prefilling {
            self.prefills[pair.prefill].queue.retain(|prompt| prompt.request != number);
            let input = self.arrivals[number].input_tokens;
            self.decodes[self.decode_of[number]].abandon(&self.setup.engine, number, input);
            self.outstanding[pair.prefill].0 -= 1;
            self.outstanding[pair.prefill].1 -= bytes;
        }
        self.outstanding[pair.decode].0 -= 1;
        self.outstanding[pair.decode].1 -= bytes;
        if let Some(sent) = sent {
            self.gateways[gateway].on_failure(&sent, !prefilling, self.now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FleetSetup, SyntheticMix};

    #[test]
    fn a_slow_engine_keeps_its_own_speed_during_and_after_the_fault() {
        let perturbation = "engines:0.5".parse().unwrap();
        let setup = FleetSetup { perturbation, ..FleetSetup::default() };
        let trace = SyntheticMix::Short.draw(1, 1);
        let contender = "predicted".parse().unwrap();
        let mut simulation = Simulation::new(&setup, &trace.arrivals, contender, 1);
        let slowness =
            |of: &Simulation<'_>| [of.prefills[0].slowness, of.decodes[0].slowness].map(f64::ln);
        let own = slowness(&simulation);
        assert!(own.iter().all(|own| own.abs() > 1e-3), "{own:?}");
        for (starts, more) in [(true, 3.0f64.ln()), (false, 0.0)] {
            simulation.fault("slow:0:3".parse().unwrap(), starts);
            simulation.fault("slow:8:3".parse().unwrap(), starts);
            for (now, own) in slowness(&simulation).into_iter().zip(own) {
                assert!((now - own - more).abs() < 1e-9, "{starts}: {now}, {own}");
            }
        }
    }
}
