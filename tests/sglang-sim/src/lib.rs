//! A program and library that behaves like SGLang's prefill/decode servers where it hurts.
