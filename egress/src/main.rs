//! The egress process and, with the argument `dialer`, its dialer. Started by a sandbox's supervisor, with a socket of
//! `sandboxvm_protocol::egress` as standard input.

fn main() -> std::process::ExitCode {
    eprintln!("sandboxvm-egress: started by sandboxvm, and not by hand");
    std::process::ExitCode::from(125)
}
