# What there is in the fake AWS: one provider, the cluster's issuer; three roles, each for one service account and one
# path of secrets; and their secrets.
# Arguments: $issuer, $test, $prod and $batch, the values.

def provider: "oidc-provider/" + ($issuer | ltrimstr("https://"));

def role($name; $namespace; $account): {
  arn: "arn:aws:iam::111122223333:role/\($name)",
  trust_policy: {Version: "2012-10-17", Statement: [{
    Effect: "Allow", Action: "sts:AssumeRoleWithWebIdentity",
    Principal: {Federated: "arn:aws:iam::111122223333:\(provider)"},
    Condition: {StringEquals: {
      "\(provider | ltrimstr("oidc-provider/")):sub": "system:serviceaccount:\($namespace):\($account)",
      "\(provider | ltrimstr("oidc-provider/")):aud": "sts.amazonaws.com"}}}]},
  policy: {Version: "2012-10-17", Statement: [{
    Effect: "Allow", Action: "secretsmanager:GetSecretValue",
    Resource: "arn:aws:secretsmanager:eu-central-1:111122223333:secret:\($name)/*"}]}};

def secret($name; $value): {region: "eu-central-1", name: $name, value: $value};

{
  oidc_providers: [{issuer: $issuer, client_ids: ["sts.amazonaws.com"], jwks_file: "jwks.json"}],
  roles: [role("test"; "test"; "app"), role("prod"; "prod"; "app"), role("batch"; "prod"; "batch")],
  secrets: [
    secret("test/database-password"; $test),
    secret("prod/database-password"; $prod),
    secret("batch/report-key"; $batch)]
}
