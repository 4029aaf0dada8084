//! [`Network`]: KV cache on its way over NICs that transfers share equally.

/// One request's KV cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) request: usize,
    prefill: usize,
    decode: usize,
    left_bytes: f64,
    rate: f64,
    /// Prefill has no more to add.
    whole: bool,
    pub(crate) sent_bytes: f64,
    pub(crate) active_ms: f64,
}

/// Transfers, and what each NIC has for them.
#[derive(Debug)]
pub(crate) struct Network {
    flows: Vec<Flow>,
    /// Bytes a millisecond that background traffic leaves, by node.
    pub(crate) tx_free: Vec<f64>,
    pub(crate) rx_free: Vec<f64>,
    /// Pairs whose path is worse than their NICs: prefill, decode, bytes a millisecond.
    pub(crate) slow_pairs: Vec<(usize, usize, f64)>,
    now: f64,
    /// Counts the changes, so that an end that was foretold before one is void.
    pub(crate) version: u64,
}

impl Network {
    pub(crate) fn new(prefills: usize, decodes: usize, nic: f64) -> Network {
        Network {
            flows: Vec::new(),
            tx_free: vec![nic; prefills],
            rx_free: vec![nic; decodes],
            slow_pairs: Vec::new(),
            now: 0.0,
            version: 0,
        }
    }

    /// More of a request's KV cache is ready to be sent.
    pub(crate) fn send(&mut self, request: usize, pair: (usize, usize), bytes: f64, whole: bool) {
        if let Some(flow) = self.flows.iter_mut().find(|flow| flow.request == request) {
            flow.left_bytes += bytes;
            flow.whole = whole;
            return;
        }
        self.flows.push(Flow {
            request,
            prefill: pair.0,
            decode: pair.1,
            left_bytes: bytes,
            rate: 0.0,
            whole,
            sent_bytes: 0.0,
            active_ms: 0.0,
        });
    }

    /// Lets time pass; the transfers that are whole by then are taken out.
    pub(crate) fn advance(&mut self, now: f64) -> Vec<Flow> {
        let passed = now - self.now;
        self.now = now;
        for flow in self.flows.iter_mut().filter(|flow| flow.left_bytes > 0.0) {
            let bytes = (flow.rate * passed).min(flow.left_bytes);
            flow.left_bytes -= bytes;
            flow.sent_bytes += bytes;
            flow.active_ms += passed;
            // Less than a packet is a rounding error.
            if flow.left_bytes < 1000.0 {
                flow.sent_bytes += flow.left_bytes;
                flow.left_bytes = 0.0;
            }
        }
        let done = |flow: &Flow| flow.whole && flow.left_bytes == 0.0;
        let ended = self.flows.iter().copied().filter(done).collect();
        self.flows.retain(|flow| !done(flow));
        ended
    }

    /// Shares the NICs anew; says when the next transfer ends. Call after every change.
    pub(crate) fn share(&mut self) -> Option<f64> {
        self.version += 1;
        let mut tx = vec![0.0f64; self.tx_free.len()];
        let mut rx = vec![0.0f64; self.rx_free.len()];
        for flow in self.flows.iter().filter(|flow| flow.left_bytes > 0.0) {
            tx[flow.prefill] += 1.0;
            rx[flow.decode] += 1.0;
        }
        let mut next = f64::INFINITY;
        for flow in &mut self.flows {
            if flow.left_bytes == 0.0 {
                flow.rate = 0.0;
                continue;
            }
            let path = self.slow_pairs.iter().find(|p| (p.0, p.1) == (flow.prefill, flow.decode));
            let share = (self.tx_free[flow.prefill] / tx[flow.prefill])
                .min(self.rx_free[flow.decode] / rx[flow.decode])
                .min(path.map_or(f64::INFINITY, |path| path.2));
            flow.rate = share;
            next = next.min(flow.left_bytes / share);
        }
        next.is_finite().then_some(self.now + next)
    }

    /// What is sent now, out of a prefill or into a decode.
    pub(crate) fn tx_rate(&self, prefill: usize) -> f64 {
        self.flows.iter().filter(|flow| flow.prefill == prefill).map(|flow| flow.rate).sum()
    }

    pub(crate) fn rx_rate(&self, decode: usize) -> f64 {
        self.flows.iter().filter(|flow| flow.decode == decode).map(|flow| flow.rate).sum()
    }

    /// A worker died: its transfers are gone.
    pub(crate) fn cut(&mut self, gone: impl Fn(usize) -> bool) {
        self.flows.retain(|flow| !gone(flow.request));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_transfers_share_a_nic_and_bytes_are_conserved() {
        let mut network = Network::new(2, 2, 1000.0);
        network.send(1, (0, 0), 1_000_000.0, true);
        network.send(2, (0, 1), 2_000_000.0, true);
        assert_eq!(network.share(), Some(2000.0));
        let ended = network.advance(2000.0);
        assert_eq!(ended.iter().map(|flow| flow.request).collect::<Vec<_>>(), [1]);
        assert_eq!(network.share(), Some(3000.0), "the other has the NIC alone now");
        let ended = network.advance(3000.0);
        assert_eq!(ended[0].sent_bytes, 2_000_000.0);
    }
}
