//! Command templates: `{name}` is replaced where the name is known; other braces are the shell's.

/// The template with every known name replaced.
pub(crate) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = template.to_owned();
    for (name, value) in values {
        filled = filled.replace(&format!("{{{name}}}"), value);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_replaced_and_braces_of_the_shell_stay() {
        let filled = fill("x --host {ip} ${HOME} {a,b} {ip}", &[("ip", "1.2.3.4")]);
        assert_eq!(filled, "x --host 1.2.3.4 ${HOME} {a,b} 1.2.3.4");
    }
}
