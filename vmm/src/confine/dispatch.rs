//! Compiles rules for system calls into a filter that finds a call's rules by halving, not one by one. The kernel runs a
//! new filter once for every call there is, to remember which are always allowed (`seccomp_cache_prepare`), so a linear
//! filter of this size costs a machine's start a tenth of a millisecond. Knows no call.

use seccompiler::{BpfProgram, SeccompAction, sock_filter};
use std::collections::BTreeMap;

// The few instructions of classic BPF that are needed here, linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20;
const JUMP_ALWAYS: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP_IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
/// `AUDIT_ARCH_X86_64`, linux/audit.h.
const X86_64: u32 = 0xc000_003e;

/// What the low 32 bits of one argument must be. The kernel looks at no more of any argument that is judged here: they
/// are `int`s, or flag words of which the upper half means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    /// One of these; those that come often first.
    OneOf(Vec<u32>),
    /// Without any of these bits.
    Without(u32),
    /// Not this one.
    Not(u32),
}

/// A condition on an argument, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) argument: u32,
    pub(super) test: Test,
}

/// When a call is allowed, and what else becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// All must hold; none: always allowed.
    pub(super) checks: Vec<Check>,
    pub(super) otherwise: SeccompAction,
}

/// System calls in a row that are treated alike.
#[derive(Debug)]
struct Calls {
    first: u32,
    last: u32,
    rule: Rule,
}

/// A filter that allows a call of `rules` when its checks hold, and does `otherwise` in every other case: other calls, other
/// architectures, the x32 ABI.
pub(super) fn compile(rules: BTreeMap<u32, Rule>, otherwise: &SeccompAction) -> BpfProgram {
    let otherwise = u32::from(otherwise.clone());
    let mut calls: Vec<Calls> = Vec::with_capacity(rules.len());
    for (number, rule) in rules {
        match calls.last_mut() {
            Some(row) if row.last + 1 == number && row.rule.checks.is_empty() && rule.checks.is_empty() => {
                row.last = number;
            }
            _ => calls.push(Calls { first: number, last: number, rule }),
        }
    }
    // Grown once: each growth of what is so large is a mapping.
    let mut program = Vec::with_capacity(512);
    program.extend([
        plain(LOAD_WORD, ARCHITECTURE),
        jump(JUMP_IF_EQUAL, X86_64, 1, 0),
        plain(RETURN, otherwise),
        plain(LOAD_WORD, NUMBER),
    ]);
    tree(&mut program, &calls, otherwise);
    program
}

fn tree(program: &mut BpfProgram, calls: &[Calls], otherwise: u32) {
    match calls {
        [] => program.push(plain(RETURN, otherwise)),
        [one] => leaf(program, one, otherwise),
        _ => {
            let (low, high) = calls.split_at(calls.len() / 2);
            let first_high = high[0].first;
            let branch = program.len();
            program.push(jump(JUMP_IF_GREATER_OR_EQUAL, first_high, 0, 0));
            tree(program, low, otherwise);
            let distance = program.len() - branch - 1;
            match u8::try_from(distance) {
                Ok(near) => program[branch].jt = near,
                // A conditional jump reaches 255 instructions. All jumps are relative, so what is moved stays right.
                Err(_) => {
                    program[branch].jf = 1;
                    program.insert(branch + 1, plain(JUMP_ALWAYS, u32::try_from(distance).unwrap_or(u32::MAX)));
                }
            }
            tree(program, high, otherwise);
        }
    }
}

fn leaf(program: &mut BpfProgram, calls: &Calls, otherwise: u32) {
    if calls.first == calls.last {
        program.extend([jump(JUMP_IF_EQUAL, calls.first, 1, 0), plain(RETURN, otherwise)]);
    } else {
        program.extend([
            jump(JUMP_IF_GREATER_OR_EQUAL, calls.first, 0, 1),
            jump(JUMP_IF_GREATER, calls.last, 0, 1),
            plain(RETURN, otherwise),
        ]);
    }
    let refused = u32::from(calls.rule.otherwise.clone());
    for check in &calls.rule.checks {
        checked(program, check, refused);
    }
    program.push(plain(RETURN, SeccompAction::Allow.into()));
}

/// Appends a check; the program continues after it when the check holds.
fn checked(program: &mut BpfProgram, Check { argument, test }: &Check, refused: u32) {
    program.push(plain(LOAD_WORD, ARGUMENTS + 8 * argument));
    match test {
        Test::OneOf(values) => {
            for (index, value) in values.iter().enumerate() {
                let behind = u8::try_from(values.len() - index).expect("the lists of this crate are short");
                program.push(jump(JUMP_IF_EQUAL, *value, behind, 0));
            }
        }
        Test::Without(bits) => program.push(jump(JUMP_IF_ANY_BIT, *bits, 0, 1)),
        Test::Not(value) => program.push(jump(JUMP_IF_EQUAL, *value, 0, 1)),
    }
    program.push(plain(RETURN, refused));
}

fn plain(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const TRAP: u32 = 0x0003_0000;
    const KILL: u32 = 0x8000_0000;

    /// What a filter says of a call whose arguments are all `argument`, and after how many instructions.
    fn run(program: &[sock_filter], architecture: u32, number: u32, argument: u64) -> (u32, usize) {
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&architecture.to_ne_bytes());
        for offset in (16..64).step_by(8) {
            data[offset..offset + 8].copy_from_slice(&argument.to_ne_bytes());
        }
        let (mut at, mut a, mut steps) = (0, 0_u32, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            steps += 1;
            let either = |condition| usize::from(if condition { jt } else { jf });
            match code {
                LOAD_WORD => a = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
                JUMP_ALWAYS => at += k as usize,
                JUMP_IF_EQUAL => at += either(a == k),
                JUMP_IF_GREATER => at += either(a > k),
                JUMP_IF_GREATER_OR_EQUAL => at += either(a >= k),
                JUMP_IF_ANY_BIT => at += either(a & k != 0),
                RETURN => return (k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn rule(tests: Vec<Test>, otherwise: SeccompAction) -> Rule {
        let checks = (0..).zip(tests).map(|(argument, test)| Check { argument, test }).collect();
        Rule { checks, otherwise }
    }

    fn rules(many: u32) -> BTreeMap<u32, Rule> {
        let trap = SeccompAction::Trap;
        let mut rules: BTreeMap<u32, Rule> =
            (0..many).filter(|n| n % 7 < 4).map(|n| (n, rule(Vec::new(), trap.clone()))).collect();
        rules.insert(9, rule(vec![Test::OneOf((5..60).collect()), Test::Without(2)], trap.clone()));
        rules.insert(16, rule(vec![Test::Not(31)], SeccompAction::KillProcess));
        rules.insert(many / 2, rule(vec![Test::OneOf(vec![7, 8, 9])], trap));
        rules
    }

    /// What is meant, in plain words.
    fn meant(rules: &BTreeMap<u32, Rule>, number: u32, argument: u64) -> u32 {
        let Some(rule) = rules.get(&number) else { return TRAP };
        let low = u32::try_from(argument & 0xffff_ffff).unwrap();
        let holds = |check: &Check| match &check.test {
            Test::OneOf(values) => values.contains(&low),
            Test::Without(bits) => low & bits == 0,
            Test::Not(value) => low != *value,
        };
        if rule.checks.iter().all(holds) { ALLOW } else { u32::from(rule.otherwise.clone()) }
    }

    #[test]
    fn compiled_filter_answers_as_its_rules_and_in_few_steps() {
        for many in [20, 60, 450, 900] {
            let rules = rules(many);
            let program = compile(rules.clone(), &SeccompAction::Trap);
            let mut longest = 0;
            for number in (0..1000).chain([0x4000_0000, 0x4000_0009, u32::MAX]) {
                for argument in [0, 4, 5, 6, 7, 8, 9, 31, 59, 60, 0xff00_0000_0004, 1 << 32 | 5, 1 << 32 | 31] {
                    let (said, steps) = run(&program, X86_64, number, argument);
                    assert_eq!(said, meant(&rules, number, argument), "call {number}, argument {argument:#x}");
                    assert_eq!(run(&program, 0x4000_0003, number, argument).0, TRAP, "another architecture");
                    longest = longest.max(if number == 9 { 0 } else { steps });
                }
            }
            assert!(longest < 25, "{longest} instructions for one of {many} calls");
            assert_eq!(run(&program, X86_64, 16, 31).0, KILL);
        }
    }

    #[test]
    fn filter_without_rules_allows_nothing() {
        let program = compile(BTreeMap::new(), &SeccompAction::KillProcess);
        assert_eq!(run(&program, X86_64, 0, 0).0, KILL);
    }
}
