//! Values that do not belong on a command line, which other users of the host can read: secrets, and passwords of proxies.
//! Reads them from the environment or notes the file that has them.

use crate::failure::Failure;
use sandboxvm_manager::{ProxyError, ProxySpec, SecretKind, SecretSpec, SecretText, ValueSource};
use std::{
    env::VarError,
    fs, io,
    path::{self, Path},
};

/// Reads `NAME@HOST[,HOST]`, whose value is in the environment, or `NAME=FILE@HOST[,HOST]`. A value is never part of the
/// command line, which other users of the host can read. `aws:env@HOST` and `aws:PROFILE=FILE@HOST` are the same for an access
/// key of AWS.
pub(crate) fn secret(text: &str, variable: impl Fn(&str) -> Result<String, VarError>) -> Result<SecretSpec, Failure> {
    let invalid = || Failure::new(format_args!("invalid secret {text:?}: expected NAME@HOST or NAME=FILE@HOST"));
    let (source, hosts) = text.rsplit_once('@').ok_or_else(invalid)?;
    let hosts_of = |hosts: &str| hosts.split(',').map(str::to_owned).collect();
    if let Some(key) = source.strip_prefix("aws:") {
        let (profile, value) = match key.split_once('=') {
            Some((_, "")) => return Err(invalid()),
            Some((profile, file)) => (profile, from_file(source.split('=').next().unwrap_or(source), file)?),
            None if key == "env" => ("default", access_key(variable)?),
            None => {
                return Err(Failure::new(format_args!(
                    "invalid secret {text:?}: expected aws:env@HOST or aws:PROFILE=FILE@HOST"
                )));
            }
        };
        return Ok(SecretSpec::access_key(hosts_of(hosts), profile, value));
    }
    let (name, value) = match source.split_once('=') {
        Some((_, "")) => return Err(invalid()),
        Some((name, file)) => (name, from_file(name, file)?),
        None => {
            let value = variable(source).map_err(|error| {
                Failure::new(format_args!("cannot read the secret {source}: {error}")).hinted(format!(
                    "set the variable {source} in the environment of this command, or name a file: {source}=FILE@{hosts}"
                ))
            })?;
            (source, ValueSource::Given(SecretText::new(value)))
        }
    };
    let (name, hosts) = (name.to_owned(), hosts_of(hosts));
    Ok(SecretSpec { name, hosts, placeholder: String::new(), value, kind: SecretKind::Text })
}

fn from_file(name: &str, file: &str) -> Result<ValueSource, Failure> {
    let file = path::absolute(file).map_err(|error| Failure::new(format_args!("invalid path {file:?}: {error}")))?;
    if let Err(error) = fs::File::open(&file) {
        let message = format_args!("cannot read the secret {name} from {}: {error}", file.display());
        return Err(Failure::new(message));
    }
    Ok(ValueSource::File(file))
}

/// Reads the access key that tools of AWS would use.
fn access_key(variable: impl Fn(&str) -> Result<String, VarError>) -> Result<ValueSource, Failure> {
    let read = |name: &str| {
        variable(name).map_err(|error| {
            Failure::new(format_args!("cannot read the access key from the variable {name}: {error}"))
                .hinted("set it in the environment of this command, or name a file: aws:PROFILE=FILE@HOST".to_owned())
        })
    };
    let token = variable("AWS_SESSION_TOKEN").ok().filter(|token| !token.is_empty());
    let (id, secret) = (read("AWS_ACCESS_KEY_ID")?, read("AWS_SECRET_ACCESS_KEY")?);
    Ok(ValueSource::Given(SecretText::access_key(&id, &secret, token.as_deref())))
}

/// Returns the proxy of `--proxy`, with the password from the option that names it.
pub(super) fn proxy(
    text: &str,
    password: Option<&str>,
    password_file: Option<&Path>,
    variable: impl Fn(&str) -> Result<String, VarError>,
) -> Result<ProxySpec, Failure> {
    // The text may have a password, so it is not repeated.
    let invalid = |error: ProxyError| Failure::new(format_args!("invalid proxy: {error}"));
    let mut proxy: ProxySpec = text.parse().map_err(invalid)?;
    let given = match (password, password_file) {
        (None, None) => return Ok(proxy),
        (Some(name), _) => {
            let value = variable(name).map_err(|error| {
                Failure::new(format_args!("cannot read the password of the proxy from the variable {name}: {error}"))
            })?;
            ValueSource::Given(SecretText::new(value))
        }
        (None, Some(file)) => {
            let unreadable = |error: io::Error| {
                let message = format_args!("cannot read the password of the proxy from {}: {error}", file.display());
                Failure::new(message)
            };
            let file = path::absolute(file).map_err(unreadable)?;
            fs::File::open(&file).map_err(unreadable)?;
            ValueSource::File(file)
        }
    };
    if proxy.password.is_some() {
        return Err(Failure::new("cannot combine a password in --proxy with another one"));
    }
    proxy.password = Some(given);
    proxy.check().map_err(invalid)?;
    Ok(proxy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn secrets_come_from_the_environment_or_a_file_and_are_never_shown() {
        let variable = |name: &str| match name {
            "API_TOKEN" => Ok("sk-value".to_owned()),
            _ => Err(VarError::NotPresent),
        };
        let read = |text: &str| secret(text, variable);
        let from_environment = read("API_TOKEN@api.example,*.b.example").unwrap();
        assert_eq!(from_environment.hosts, ["api.example", "*.b.example"]);
        assert_eq!(from_environment.value, ValueSource::Given(SecretText::new("sk-value".into())));
        assert!(!format!("{from_environment:?}").contains("sk-value"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let from_file = read(&format!("KEY={}@a.example", file.path().display())).unwrap();
        assert_eq!(from_file.value, ValueSource::File(file.path().to_owned()));
        let refusal = |text: &str| read(text).unwrap_err().text().to_owned();
        assert!(refusal("MISSING@a.example").starts_with("cannot read the secret MISSING: "));
        assert!(
            refusal("KEY=/does/not/exist@a.example").starts_with("cannot read the secret KEY from /does/not/exist")
        );
        assert!(
            refusal("KEY").starts_with("invalid secret") && refusal("KEY=@a.example").starts_with("invalid secret")
        );
    }

    #[test]
    fn access_keys_of_aws_come_from_the_environment_or_a_profile() {
        let of = |token: Option<&'static str>| {
            move |name: &str| match name {
                "AWS_ACCESS_KEY_ID" => Ok("AKID".to_owned()),
                "AWS_SECRET_ACCESS_KEY" => Ok("sk".to_owned()),
                "AWS_SESSION_TOKEN" => token.map(str::to_owned).ok_or(VarError::NotPresent),
                _ => Err(VarError::NotPresent),
            }
        };
        let given = |text: &str| ValueSource::Given(SecretText::new(text.into()));
        let key = secret("aws:env@*.s3.example,s3.example", of(Some("token"))).unwrap();
        assert_eq!((key.name.as_str(), key.value), ("AWS_ACCESS_KEY_ID", given("AKID\nsk\ntoken")));
        assert_eq!((key.hosts.len(), key.kind), (2, SecretKind::AccessKey { profile: "default".into() }));
        assert_eq!(secret("aws:env@s3.example", of(None)).unwrap().value, given("AKID\nsk"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let key = secret(&format!("aws:ci={}@s3.example", file.path().display()), of(None)).unwrap();
        assert_eq!(key.value, ValueSource::File(file.path().to_owned()));
        assert_eq!(key.kind, SecretKind::AccessKey { profile: "ci".into() });
        let refusal = |text: &str| secret(text, |_: &str| Err(VarError::NotPresent)).unwrap_err().text().to_owned();
        assert!(refusal("aws:env@s3.example").starts_with("cannot read the access key from the variable AWS_ACCESS"));
        assert!(refusal("aws:ci@s3.example").contains("expected aws:env@HOST or aws:PROFILE=FILE@HOST"));
        assert!(refusal("aws:ci=@s3.example").starts_with("invalid secret"));
        assert!(refusal("aws:ci=/none@s3.example").starts_with("cannot read the secret aws:ci from /none: "));
    }

    #[test]
    fn passwords_of_proxies_come_from_the_environment_a_file_or_the_option_and_are_never_shown() {
        let with = |proxy: &str, name: Option<&str>, file: Option<PathBuf>| {
            let variable =
                |name: &str| if name == "PROXY_PASSWORD" { Ok("hush".to_owned()) } else { Err(VarError::NotPresent) };
            super::proxy(proxy, name, file.as_deref(), variable)
        };
        let given = Some(ValueSource::Given(SecretText::new("hush".into())));
        let from_environment = with("socks5://me@proxy.example:1080", Some("PROXY_PASSWORD"), None).unwrap();
        assert_eq!(from_environment.password, given);
        assert!(!format!("{from_environment:?}").contains("hush"));
        assert_eq!(with("http://me:hush@proxy.example:1", None, None).unwrap().password, given);
        let file = tempfile::NamedTempFile::new().unwrap();
        let from_file = with("http://me@proxy.example:1", None, Some(file.path().into())).unwrap();
        assert_eq!(from_file.password, Some(ValueSource::File(file.path().into())));
        let refusal = |proxy: &str, name, file| with(proxy, name, file).unwrap_err().text().to_owned();
        let missing = refusal("http://me@proxy.example:1", Some("MISSING"), None);
        assert!(missing.starts_with("cannot read the password of the proxy from the variable MISSING: "), "{missing}");
        let missing = refusal("http://me@proxy.example:1", None, Some("/does/not/exist".into()));
        assert!(missing.starts_with("cannot read the password of the proxy from /does/not/exist: "), "{missing}");
        assert_eq!(
            refusal("http://proxy.example:1", Some("PROXY_PASSWORD"), None),
            "invalid proxy: a password needs a user name"
        );
        let invalid = refusal("hush", None, None);
        assert!(invalid.starts_with("invalid proxy: expected socks5://") && !invalid.contains("hush"), "{invalid}");
        let twice = refusal("http://me:hush@proxy.example:1", Some("PROXY_PASSWORD"), None);
        assert!(twice.starts_with("cannot combine"), "{twice}");
    }
}
