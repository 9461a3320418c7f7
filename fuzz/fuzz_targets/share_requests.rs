//! See `sandboxvm_fuzz_targets::share_requests`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| sandboxvm_fuzz_targets::share_requests(data));
