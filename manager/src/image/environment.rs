//! The environment of an image under that of its user. May not change a value.

use std::collections::HashSet;

/// Returns the variables of a sandbox: those of its image, without the ones that its user sets too, and
/// then the user's. An entry of an image that is not `KEY=VALUE` sets nothing, as in docker.
#[must_use]
pub fn over_environment_of_image(image: Vec<String>, user: Vec<String>) -> Vec<String> {
    let name = |entry: &String| entry.split('=').next().unwrap_or_default().to_owned();
    let mut set: HashSet<String> = user.iter().map(name).collect();
    // Of two entries of an image with one name, the last one counts.
    let mut kept: Vec<String> = Vec::new();
    for entry in image.into_iter().rev() {
        let is_variable = entry.find('=').is_some_and(|at| at > 0) && !entry.contains('\0');
        if is_variable && set.insert(name(&entry)) {
            kept.push(entry);
        }
    }
    kept.reverse();
    kept.into_iter().chain(user).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_replaces_variables_of_the_image_and_invalid_ones_are_dropped() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let image = texts(&["PATH=/opt/bin", "A=1", "NAME", "=x", "B=2", "A=3", "C=\0"]);
        let user = texts(&["B=own", "D="]);
        let merged = over_environment_of_image(image, user);
        assert_eq!(merged, texts(&["PATH=/opt/bin", "A=3", "B=own", "D="]));
    }
}
