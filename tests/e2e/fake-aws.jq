# What there is in the fake AWS: one provider, the cluster's issuer; a role for each of four service accounts, each
# for one path of secrets; and their secrets.
# Arguments: $issuer, $test, $prod, $batch and $shop, the values.

def provider: "oidc-provider/" + ($issuer | ltrimstr("https://"));

def role($name; $namespace; $account; $path): {
  arn: "arn:aws:iam::111122223333:role/\($name)",
  trust_policy: {Version: "2012-10-17", Statement: [{
    Effect: "Allow", Action: "sts:AssumeRoleWithWebIdentity",
    Principal: {Federated: "arn:aws:iam::111122223333:\(provider)"},
    Condition: {StringEquals: {
      "\(provider | ltrimstr("oidc-provider/")):sub": "system:serviceaccount:\($namespace):\($account)",
      "\(provider | ltrimstr("oidc-provider/")):aud": "sts.amazonaws.com"}}}]},
  policy: {Version: "2012-10-17", Statement: [{
    Effect: "Allow", Action: "secretsmanager:GetSecretValue",
    Resource: "arn:aws:secretsmanager:eu-central-1:111122223333:secret:\($path)/*"}]}};

def secret($name; $value): {region: "eu-central-1", name: $name, value: $value};

{
  oidc_providers: [{issuer: $issuer, client_ids: ["sts.amazonaws.com"], jwks_file: "jwks.json"}],
  roles: [
    role("test"; "test"; "app"; "test"),
    role("prod"; "prod"; "app"; "prod"),
    role("batch"; "prod"; "batch"; "batch"),
    role("shop-web"; "shop"; "web"; "shop")],
  secrets: [
    secret("test/database-password"; $test),
    secret("prod/database-password"; $prod),
    secret("batch/report-key"; $batch),
    secret("shop/database-password"; $shop),
    secret("shop/api-key"; "key-" + $shop)]
}
